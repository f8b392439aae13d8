"""What requests ask of the engine: rows of one operation, as recipes.

A work holds what its rows are made from (seeds, images, latents), not the noise, so that a
request of any size holds only as much memory as its question and its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.noise import Purpose

__all__ = ["DecodeWork", "EncodeWork", "NoiseKeys", "Pixels", "SampleWork", "ScoreWork", "Work"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Pixels = Literal["mean", "draw", "both"]


class Work(Protocol):
    """A request's rows for one operation."""

    @property
    def operation(self) -> str:
        """Which graph computes it."""
        ...

    @property
    def rows(self) -> int:
        """How many rows it has."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class NoiseKeys:
    """What each row's noise is a function of: uint64 ``[n]`` seeds and streams, and a purpose."""

    seeds: U64
    streams: U64
    purpose: Purpose

    def cut(self, start: int, stop: int) -> tuple[U64, U64, U64]:
        """Seeds, streams and purposes of some rows."""
        purposes = np.full(stop - start, int(self.purpose), dtype=np.uint64)
        return self.seeds[start:stop], self.streams[start:stop], purposes


@dataclass(frozen=True, eq=False, slots=True)
class SampleWork:
    """Images from prior noise: `eps` ``[n, D]``, or noise of `keys` where it is None."""

    keys: NoiseKeys
    temperature: F32  # [n, G]
    output: Pixels
    eps: F32 | None = None
    operation = "sample"

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.temperature)


@dataclass(frozen=True, eq=False, slots=True)
class DecodeWork:
    """Images from latents `z` ``[n, D]``; `keys` are for drawing pixels."""

    z: F32
    keys: NoiseKeys
    output: Pixels
    operation = "decode"

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.z)


@dataclass(frozen=True, eq=False, slots=True)
class EncodeWork:
    """Latents of `images`; without `seed`, those at eps = 0."""

    images: U8  # [n, C, H, W]
    keys: U64  # [n]
    seed: int | None
    operation = "encode"

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.images)


@dataclass(frozen=True, eq=False, slots=True)
class ScoreWork:
    """`samples` importance samples of each image; row r is sample ``r % K`` of image ``r // K``."""

    images: U8  # [n, C, H, W]
    keys: U64  # [n]
    seed: int
    samples: int
    operation = "score"

    @property
    def rows(self) -> int:
        """Importance samples of all images."""
        return len(self.images) * self.samples
