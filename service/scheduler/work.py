"""What requests ask of the engine: rows of one operation, as recipes, and jobs that await them.

A work holds what its rows are made from (seeds, images, latents), not the noise, so that a
request of any size holds only as much memory as its question and its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Arrays
from service.noise import Purpose, image_keys

__all__ = [
    "Asked",
    "DecodeWork",
    "EncodeWork",
    "EvidenceWork",
    "Job",
    "Keys",
    "Noise",
    "Piece",
    "Pixels",
    "Rows",
    "SampleWork",
    "ScoreWork",
    "Work",
    "first_images",
    "image_noise",
    "positions",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Pixels = Literal["mean", "draw", "both"]


# Float32 [stop - start, D] of rows start to stop, often made only then; workers' threads ask.
Rows = Callable[[int, int], F32]
Keys = tuple[U64, U64, U64]  # seeds, streams and purposes of rows, uint64 [n] each
Noise = Callable[[int, int], Keys]  # of rows start to stop of a work


def positions(seed: int) -> Noise:
    """Images 0, 1, ... of one seed, as many as are asked for."""
    return lambda start, stop: _keys(seed, np.arange(start, stop, dtype=np.uint64), Purpose.SAMPLE)


def first_images(seeds: U64) -> Noise:
    """The first image of each of `seeds` ``[n]``."""
    return lambda start, stop: _keys(
        seeds[start:stop], np.zeros(stop - start, dtype=np.uint64), Purpose.SAMPLE
    )


def image_noise(seed: int, images: U8) -> Noise:
    """Noise that belongs to `images` ``[n, C, H, W]``, wherever they stand, under one seed.

    Their keys are hashes of their pixels, made where they are asked for.
    """
    return lambda start, stop: _keys(seed, image_keys(images[start:stop]), Purpose.IMAGE)


def _keys(seeds: int | U64, streams: U64, purpose: Purpose) -> Keys:
    purposes = np.full(len(streams), int(purpose), dtype=np.uint64)
    return np.full(len(streams), seeds, dtype=np.uint64), streams, purposes


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class SampleWork:
    """Images from prior noise: rows of `eps`, or noise of `keys` where it is None.

    resolved: the options in force, as the answer says them.
    """

    keys: Noise
    temperature: F32  # [n, G]
    output: Pixels
    eps: Rows | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    operation: ClassVar[str] = "sample"
    samples: ClassVar[int] = 1

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.temperature)

    def piece(self, start: int, stop: int) -> SampleWork:
        """Images `start` to `stop` alone."""
        keys, eps = self.keys, self.eps
        return replace(
            self,
            keys=lambda first, last: keys(start + first, start + last),
            temperature=self.temperature[start:stop],
            eps=eps and (lambda first, last: eps(start + first, start + last)),
        )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class DecodeWork:
    """Images from latents `z` ``[n, D]``; `keys` are for drawing pixels."""

    z: F32
    keys: Noise
    output: Pixels
    operation: ClassVar[str] = "decode"
    samples: ClassVar[int] = 1

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.z)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EncodeWork:
    """Latents of `images`; without `seed`, those at eps = 0."""

    images: U8  # [n, C, H, W]
    seed: int | None
    operation: ClassVar[str] = "encode"
    samples: ClassVar[int] = 1

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.images)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ScoreWork:
    """`samples` importance samples of each image; row r is sample ``r % K`` of image ``r // K``."""

    images: U8  # [n, C, H, W]
    seed: int
    samples: int
    operation: ClassVar[str] = "score"

    @property
    def rows(self) -> int:
        """Number of importance samples, over all images."""
        return len(self.images) * self.samples


class EvidenceWork(ScoreWork):
    """The same, and what a pass at eps = 0 finds in each image."""

    __slots__ = ()
    operation: ClassVar[str] = "evidence"


# A request's rows for one operation: which graph computes it, how many rows it has, and how many
# `samples` of one image follow each other: what is computed once for each image.
Work = SampleWork | DecodeWork | EncodeWork | ScoreWork


class Asked(TypedDict, total=False):
    """caller: whose turn a work is counted as, one's works wait in one line; deadline: until when
    its answer is of use, on the clock of `time.monotonic`."""

    caller: str
    deadline: float | None


class Job:
    """A work from its submission to its answer.

    It belongs to the event loop; workers read `work` and `gone`. caller: "holder/connection", or
    its holder alone; future, expiry: what the caller awaits, and the timer that fails it at its
    deadline, both made by the scheduler; arrays: the answer, once all rows are `done`;
    queue_seconds: until its first batch began; compute_seconds: of all batches it was in, each in
    whole; gone: nobody waits for it any more, for `reason`.
    """

    def __init__(self, work: Work, caller: str = "") -> None:
        self.work = work
        self.operation, self.rows, self.samples = work.operation, work.rows, work.samples
        self.images = self.rows // self.samples
        self.caller, self.holder = caller, caller.partition("/")[0]
        self.future: asyncio.Future[None]
        self.expiry: asyncio.TimerHandle | None = None
        self.submitted = self.began = time.monotonic()
        self.taken, self.done = self.rows, 0
        self.gone, self.reason = False, ""
        self.compute_seconds = 0.0
        self.parts: list[tuple[int, Arrays]] = []
        self.arrays: Arrays = {}

    @property
    def queue_seconds(self) -> float:
        """How long its first rows waited."""
        return self.began - self.submitted

    def add(self, start: int, stop: int, arrays: Arrays, *, began: float, seconds: float) -> bool:
        """Keep rows `start` to `stop`, and say whether these were the last.

        The batch that computed them began at `began` and took `seconds`.
        """
        self.began = min(self.began, began) if self.done else began
        self.done += stop - start
        self.compute_seconds += seconds
        if stop - start == self.rows:
            self.arrays = arrays
            return True
        self.parts.append((start, arrays))
        if self.done < self.rows:
            return False
        joined: dict[str, list[NDArray[Any]]] = {}
        for _, part in sorted(self.parts, key=itemgetter(0)):
            for name, array in part.items():  # not every part has all
                joined.setdefault(name, []).append(array)
        self.arrays = {name: np.concatenate(some) for name, some in joined.items()}
        return True

    def leave(self, reason: str) -> None:
        """Give the job up: nobody waits for its answer."""
        self.reason, self.gone = reason, True  # in this order: workers count skipped rows by it
        self.parts = []


Piece = tuple[Job, int, int]  # a job and the rows start to stop of it
