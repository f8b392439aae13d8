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
    "Noise",
    "NoiseKeys",
    "Pixels",
    "Positions",
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


Keys = tuple[U64, U64, U64]  # seeds, streams and purposes of rows, uint64 [n] each


class Noise(Protocol):
    """What the noise of each row of a work is a function of."""

    def cut(self, start: int, stop: int) -> Keys:
        """Of rows `start` to `stop`."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class NoiseKeys:
    """A seed and a stream for each row, uint64 ``[n]``, for one purpose."""

    seeds: U64
    streams: U64
    purpose: Purpose

    @classmethod
    def of(cls, seed: int, image_keys: U64) -> NoiseKeys:
        """Noise that belongs to images, under one seed."""
        seeds = np.full(len(image_keys), seed, dtype=np.uint64)
        return cls(seeds, image_keys, Purpose.IMAGE)

    def cut(self, start: int, stop: int) -> Keys:
        """Of rows `start` to `stop`."""
        purposes = np.full(stop - start, int(self.purpose), dtype=np.uint64)
        return self.seeds[start:stop], self.streams[start:stop], purposes


@dataclass(frozen=True, slots=True)
class Positions:
    """Images `first`, ``first + 1``, ... of one seed, as many as are asked for."""

    seed: int
    first: int = 0

    def cut(self, start: int, stop: int) -> Keys:
        """Of rows `start` to `stop`."""
        first, rows = self.first + start, stop - start
        seeds = np.full(rows, self.seed, dtype=np.uint64)
        streams = np.arange(first, first + rows, dtype=np.uint64)
        return seeds, streams, np.full(rows, int(Purpose.SAMPLE), dtype=np.uint64)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class SampleWork:
    """Images from prior noise: `eps` ``[n, D]``, or noise of `keys` where it is None.

    resolved: the options in force, as the answer says them.
    """

    rows: int
    image_count: int
    keys: Noise
    temperature: F32  # [n, G]
    output: Pixels
    eps: Rows | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    operation: ClassVar[str] = "sample"

    def piece(self, start: int, stop: int) -> SampleWork:
        """Images `start` to `stop` of `Positions` alone."""
        assert isinstance(self.keys, Positions)  # noqa: S101 - only such are drawn in pieces
        return replace(
            self,
            rows=stop - start,
            image_count=stop - start,
            keys=Positions(self.keys.seed, self.keys.first + start),
            temperature=self.temperature[start:stop],
            eps=None if self.eps is None else self.eps[start:stop],
        )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DecodeWork:
    """Images from latents `z` ``[n, D]``; `keys` are for drawing pixels."""

    rows: int
    image_count: int
    z: F32
    keys: Noise
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
