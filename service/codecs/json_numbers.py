"""Many numbers as JSON, a piece at a time: the encoder holds the interpreter until it returns."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ENCODER", "number_list"]

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
PIECE = 2**12  # numbers: two milliseconds


def number_list(array: NDArray[Any]) -> str:
    """The numbers of `array` in a flat list; null where one is not finite, for JSON has no such."""
    flat = array.reshape(-1)
    pieces = (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
    return "[" + ",".join([ENCODER.encode(_finite(piece))[1:-1] for piece in pieces]) + "]"


def _finite(piece: NDArray[Any]) -> list[Any]:
    numbers: list[Any] = piece.tolist()
    if np.isfinite(piece).all():
        return numbers
    return [number if math.isfinite(number) else None for number in numbers]
