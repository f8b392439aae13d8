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

__all__ = [
    "DecodeWork",
    "EncodeWork",
    "NoiseKeys",
    "Pixels",
    "Rows",
    "SampleWork",
    "ScoreWork",
    "Work",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Pixels = Literal["mean", "draw", "both"]


class Rows(Protocol):
    """Float32 ``[n, D]`` that may exist only where rows of it are asked for."""

    def __getitem__(self, rows: slice, /) -> F32:
        """Rows start to stop, ``[stop - start, D]``; called by workers' threads."""
        ...


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

    @property
    def rows_per_image(self) -> int:
        """How many rows share an image, and what is computed once for it."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class NoiseKeys:
    """What each row's noise is a function of: uint64 ``[n]`` seeds and streams, and a purpose."""

    seeds: U64
    streams: U64
    purpose: Purpose

    @classmethod
    def of(cls, seed: int, image_keys: U64) -> NoiseKeys:
        """Noise that belongs to images, under one seed."""
        seeds = np.full(len(image_keys), seed, dtype=np.uint64)
        return cls(seeds, image_keys, Purpose.IMAGE)

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
    eps: Rows | None = None
    operation = "sample"
    rows_per_image = 1

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
    rows_per_image = 1

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
    rows_per_image = 1

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

    @property
    def rows_per_image(self) -> int:
        """Importance samples of one image."""
        return self.samples
