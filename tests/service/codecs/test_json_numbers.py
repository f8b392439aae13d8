"""Lists that are written in pieces against the encoder's own."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from service.codecs import json_numbers
from service.codecs.json_numbers import PIECE, number_list


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_pieces_are_one_list(size, dtype):
    values = np.random.default_rng(size).normal(scale=50, size=size).clip(0).astype(dtype)
    assert number_list(values) == json.dumps(values.tolist(), separators=(",", ":"))


def test_shapes_are_flattened_and_what_is_not_finite_is_null():
    table = np.array([[1.5, np.nan], [-np.inf, 2.0]], np.float32)
    assert number_list(table) == "[1.5,null,null,2.0]"


def test_numbers_are_the_same_doubles():
    bits = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    values = bits.view(np.float64)
    values = np.concatenate([values[np.isfinite(values)], [0.0, -0.0, 1e-7, 1e22, 5e-324]])
    assert np.array(json.loads(number_list(values))).tobytes() == values.tobytes()


def test_no_piece_is_long(monkeypatch):
    """The encoder holds the interpreter, and so the event loop, for as long as it writes one."""
    longest, encode = 0, json_numbers.to_json

    def watched(piece, **how):
        nonlocal longest
        longest = max(longest, len(piece))
        return encode(piece, **how)

    monkeypatch.setattr(json_numbers, "to_json", watched)
    number_list(np.zeros((3, PIECE)))
    assert longest == PIECE


def test_numbers_take_a_fraction_of_what_the_encoder_takes():
    values = np.random.default_rng(0).normal(size=PIECE).astype(np.float32)
    assert 3 * cpu_seconds(number_list, values) < cpu_seconds(json.dumps, values.tolist())


def cpu_seconds(function, argument):
    """The least of several calls'."""
    times = []
    for _ in range(20):
        began = time.thread_time()
        function(argument)
        times.append(time.thread_time() - began)
    return min(times)
