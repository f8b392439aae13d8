"""Lists that are written in pieces against the encoder's own."""

from __future__ import annotations

import json

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


def test_no_piece_is_long(monkeypatch):
    """The encoder holds the interpreter, and so the event loop, for as long as it writes one."""
    longest = 0

    class Watched(json.JSONEncoder):
        def encode(self, o):
            nonlocal longest
            longest = max(longest, len(o))
            return super().encode(o)

    monkeypatch.setattr(json_numbers, "ENCODER", Watched())
    number_list(np.zeros((3, PIECE)))
    assert longest == PIECE
