"""Many numbers as JSON, a piece at a time: the encoder holds the interpreter until it returns."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray
from pydantic_core import to_json

__all__ = ["ENCODER", "number_list"]

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
PIECE = 2**12  # numbers: some tenths of a millisecond


def number_list(array: NDArray[Any]) -> str:
    """The numbers of `array` in a flat list; null where one is not finite, for JSON has no such."""
    return f"[{b','.join(_pieces(array.reshape(-1))).decode('ascii')}]"


def _pieces(flat: NDArray[Any]) -> Iterator[bytes]:
    for start in range(0, flat.size, PIECE):
        yield to_json(flat[start : start + PIECE].tolist(), inf_nan_mode="null")[1:-1]
        time.sleep(0)  # another thread need not wait for 5 ms until it may ask for the interpreter
