"""What requests ask of the engine: rows of one operation, as recipes.

A work holds what its rows are made from (seeds, images, latents), not the noise, so that a
request of any size holds only as much memory as its question and its answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.noise import Purpose

__all__ = [
    "DecodeWork",
    "EncodeWork",
    "EvidenceWork",
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
    """A request's rows for one operation.

    operation: which graph computes it; rows: how many it has; image_count: of how many images, what
    is computed once for each of them.
    """

    @property
    def operation(self) -> str: ...  # noqa: D102 - said above
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def image_count(self) -> int: ...  # noqa: D102


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

    def rows(self, start: int, stop: int) -> NoiseKeys:
        """Those of some rows."""
        return NoiseKeys(self.seeds[start:stop], self.streams[start:stop], self.purpose)

    def cut(self, start: int, stop: int) -> tuple[U64, U64, U64]:
        """Seeds, streams and purposes of some rows."""
        purposes = np.full(stop - start, int(self.purpose), dtype=np.uint64)
        return self.seeds[start:stop], self.streams[start:stop], purposes


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class SampleWork:
    """Images from prior noise: `eps` ``[n, D]``, or noise of `keys` where it is None.

    resolved: the options in force, as the answer says them.
    """

    rows: int
    image_count: int
    keys: NoiseKeys
    temperature: F32  # [n, G]
    output: Pixels
    eps: Rows | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    operation: ClassVar[str] = "sample"

    def piece(self, start: int, stop: int) -> SampleWork:
        """Images `start` to `stop` alone."""
        return replace(
            self,
            rows=stop - start,
            image_count=stop - start,
            keys=self.keys.rows(start, stop),
            temperature=self.temperature[start:stop],
            eps=None if self.eps is None else self.eps[start:stop],
        )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DecodeWork:
    """Images from latents `z` ``[n, D]``; `keys` are for drawing pixels."""

    rows: int
    image_count: int
    z: F32
    keys: NoiseKeys
    output: Pixels
    operation: ClassVar[str] = "decode"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EncodeWork:
    """Latents of `images`; without `seed`, those at eps = 0."""

    rows: int
    image_count: int
    images: U8  # [n, C, H, W]
    seed: int | None
    operation: ClassVar[str] = "encode"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ScoreWork:
    """`samples` importance samples of each image; row r is sample ``r % K`` of image ``r // K``."""

    rows: int
    image_count: int
    images: U8  # [n, C, H, W]
    seed: int
    samples: int
    operation: ClassVar[str] = "score"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EvidenceWork:
    """What one pass at eps = 0 finds in `images`; seed: of the noise of a binary model's pixels."""

    rows: int
    image_count: int
    images: U8  # [n, C, H, W]
    seed: int
    operation: ClassVar[str] = "evidence"
