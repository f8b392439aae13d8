"""JSON of requests against Python's own reader; what would take long to read is refused."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs.json_body import MAX_NUMBER_CHARACTERS, loads_once
from service.errors import InvalidInput

ENCODINGS = ("utf-8", "utf-16", "utf-32-be")


@given(st.lists(st.floats(allow_nan=False)), st.sampled_from(ENCODINGS))
def test_every_double_is_read_as_it_is_written(numbers, encoding):
    assert loads_once(json.dumps(numbers).encode(encoding)) == numbers


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "number",
    ["0." + "1" * 39, "-1." + "9" * 38, "1" * 39 + ".5", "1." + "5" * 35 + "e-30", "9" * 41],
)
def test_numbers_of_many_digits_are_refused(number, encoding):
    assert len(number) > MAX_NUMBER_CHARACTERS
    with pytest.raises(InvalidInput, match=f"{len(number)} characters, 40 are taken"):
        loads_once(f'{{"a": [1.5, {number}]}}'.encode(encoding))


def test_long_texts_beside_numbers_are_no_long_numbers():
    text = b'{"id": "' + b"0" * 100 + b'", "n": ' + b"9" * 40 + b', "x": 0.' + b"3" * 38 + b"}"
    fields = loads_once(text)
    assert fields == {"id": "0" * 100, "n": int("9" * 40), "x": 1 / 3}


@pytest.mark.parametrize("number", ["1." + "5" * 10 + "0" * 500 + "1e-307", "9" * 4300])
def test_numbers_between_two_doubles_and_long_integers_take_no_time(number):
    text = f"[{','.join([number] * 2000)}]".encode()
    start = time.perf_counter()
    with pytest.raises(InvalidInput):
        loads_once(text)
    assert time.perf_counter() - start < 0.05
