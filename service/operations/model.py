"""The operations of a loaded model: what every protocol's routes call, without HTTP.

Arguments are checked here, work is made of them, the scheduler runs it, and numbers come back as
arrays with the time they took. All randomness is a function of the arguments: the same call gives
the same bytes alone, among others, and on another replica.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle, load_bundle
from service.engine.base import EngineBase
from service.engine.options import EngineOptions
from service.errors import InvalidInput
from service.noise import Purpose, image_keys
from service.operations import checks as arguments
from service.operations.interpolation import GreatCircle
from service.operations.latents import edited, first_eps
from service.operations.load import assemble
from service.operations.results import (
    Call,
    Images,
    Latents,
    LogLikelihoods,
    Rendered,
    Scores,
    Timing,
    images_of,
    rendered_of,
    timing_of,
)
from service.operations.scores import log_likelihoods_of, scores_of
from service.scheduler.scheduler import BatchResult, Scheduler, SchedulerObserver
from service.scheduler.work import (
    DecodeWork,
    EncodeWork,
    NoiseKeys,
    Pixels,
    SampleWork,
    ScoreWork,
    Work,
)

__all__ = ["Call", "Images", "Latents", "ModelRuntime", "Rendered", "Scores", "Timing"]

Output = Literal["mean", "draw"]
NO_CALL = Call()


class ModelRuntime:
    """One loaded bundle: verified, warmed and scheduled. Made by `load`, then `start`."""

    def __init__(self, bundle: Bundle, engine: EngineBase, scheduler: Scheduler) -> None:
        self.bundle, self.engine, self.scheduler = bundle, engine, scheduler
        self.name, self.backend = bundle.manifest.name, engine.backend
        self.provider, self.precision = engine.provider, engine.precision

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        engine: EngineOptions | None = None,
        workers: int | None = None,
        max_batch_rows: int | None = None,
        max_queue_rows: int = 32_768,
        hang_seconds: float = math.inf,
        observe: Callable[[str], SchedulerObserver] | None = None,
        **changes: Any,
    ) -> ModelRuntime:
        """Load, verify and warm the bundle at `path`; blocks.

        engine: what computes, of which `changes` (``provider="cpu"``) replace fields; workers: runs
        at once on CPU (None: one a core that the process may use); max_batch_rows: upper limit,
        where the backend's own choice is larger; hang_seconds: after which a batch counts as a
        fault of the device; observe: called with the model's name for its scheduler's observer.
        Raises BundleError, or ProviderUnavailable where what was demanded is not there.
        """
        bundle = load_bundle(path)
        made, scheduler = assemble(
            bundle,
            replace(engine or EngineOptions(), **changes),
            workers=workers,
            max_batch_rows=max_batch_rows,
            max_queue_rows=max_queue_rows,
            hang_seconds=hang_seconds,
            observer=observe(bundle.manifest.name) if observe else None,
        )
        return cls(bundle, made, scheduler)

    def provider_of(self, operation: str) -> str:  # noqa: ARG002 - one for all
        """On what an operation's answers are computed."""
        return self.provider

    def precision_of(self, operation: str) -> str:  # noqa: ARG002 - one for all
        """In which precision an operation's answers are computed."""
        return self.precision

    @property
    def ready(self) -> bool:
        """Whether works are accepted."""
        return self.scheduler.accepting and self.scheduler.healthy

    @property
    def healthy(self) -> bool:
        """False after a fault of the device: the process is to be replaced."""
        return self.scheduler.healthy

    async def start(self) -> None:
        """Accept works."""
        await self.scheduler.start()

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Accept no more, give what waits `drain_seconds`, and free the memory."""
        await self.scheduler.stop(drain_seconds)
        await asyncio.to_thread(self.engine.close)

    async def sample(
        self,
        n: int,
        *,
        seed: int,
        temperature: Sequence[float],
        output: Output = "mean",
        first: int = 0,
        prior_eps: NDArray[Any] | None = None,
        resample: Sequence[str] = (),
        call: Call = NO_CALL,
    ) -> Images:
        """Images `first` to ``first + n - 1`` of `seed`, at one temperature a latent group.

        prior_eps: float32 ``[n, D]`` or ``[1, D]``: instead of the seed's noise, but for the latent
        groups to `resample`.
        """
        arguments.count("n", n)
        arguments.seed(first, "first")
        warmth = arguments.temperature(temperature, len(self.bundle.manifest.latent.groups))
        keys = _positions(n, arguments.seed(seed), first)
        work = SampleWork(
            keys,
            np.broadcast_to(warmth, (n, len(warmth))),
            arguments.output(output),
            None if prior_eps is None else edited(prior_eps, keys, self.bundle.manifest, resample),
        )
        return images_of(await self._submit(work, call))

    async def sample_each(
        self, seeds: Sequence[int], *, temperature: NDArray[Any], call: Call = NO_CALL
    ) -> Rendered:
        """The first image of each seed; temperature: ``[n, G]``. Means, their pixels, and draws."""
        arguments.count("the number of seeds", len(seeds))
        groups = len(self.bundle.manifest.latent.groups)
        warmth = [arguments.temperature(row, groups) for row in temperature]
        if len(warmth) != len(seeds):
            raise InvalidInput("temperature must have one row for each seed")
        keys = NoiseKeys(
            np.array([arguments.seed(seed) for seed in seeds], dtype=np.uint64),
            np.zeros(len(seeds), dtype=np.uint64),
            Purpose.SAMPLE,
        )
        return rendered_of(await self._submit(SampleWork(keys, np.stack(warmth), "both"), call))

    async def decode(
        self,
        latents: NDArray[Any],
        *,
        output: Output = "mean",
        seed: int = 0,
        call: Call = NO_CALL,
    ) -> Images:
        """Images of `latents` float32 ``[n, D]``; seed: for drawing pixels."""
        return images_of(await self._submit(self._decoding(latents, output, seed), call))

    async def decode_each(
        self, latents: NDArray[Any], *, seed: int = 0, call: Call = NO_CALL
    ) -> Rendered:
        """Means, their pixels, and draws of `latents` float32 ``[n, D]``."""
        return rendered_of(await self._submit(self._decoding(latents, "both", seed), call))

    async def encode(
        self, images: NDArray[Any], *, seed: int | None = None, call: Call = NO_CALL
    ) -> Latents:
        """Latents of `images` uint8 ``[n, C, H, W]``: drawn with `seed`, or at eps = 0."""
        arguments.images(images, self.bundle.manifest.image)
        result = await self._encode(images, image_keys(images), seed, call)
        return Latents(result.arrays["z"], result.arrays["prior_eps"], timing_of(result))

    async def score(
        self,
        images: NDArray[Any],
        *,
        importance_samples: int,
        seed: int,
        alpha: float,
        call: Call = NO_CALL,
    ) -> Scores:
        """Log-likelihoods of `images` uint8 ``[n, C, H, W]`` and how unusual they are."""
        arguments.alpha(alpha)
        result = await self._weigh(images, importance_samples, seed, call)
        return scores_of(result, len(images), self.bundle, seed=seed, alpha=alpha)

    async def log_likelihood(
        self,
        images: NDArray[Any],
        *,
        importance_samples: int,
        seed: int,
        call: Call = NO_CALL,
    ) -> LogLikelihoods:
        """The log-likelihoods of `score`, without what follows from them."""
        result = await self._weigh(images, importance_samples, seed, call)
        return log_likelihoods_of(result, len(images), seed)

    async def _weigh(
        self, images: NDArray[Any], importance_samples: int, seed: int, call: Call
    ) -> BatchResult:
        arguments.images(images, self.bundle.manifest.image)
        k = arguments.count("importance_samples", importance_samples)
        work = ScoreWork(images, image_keys(images), arguments.seed(seed), k)
        return await self._submit(work, call)

    async def reconstruct(
        self,
        images: NDArray[Any],
        *,
        seed: int | None = None,
        output: Output = "mean",
        call: Call = NO_CALL,
    ) -> Images:
        """Images decoded from the latents of `images`; drawn pixels without a seed are seed 0's."""
        arguments.images(images, self.bundle.manifest.image)
        keys = image_keys(images)
        coded = await self._encode(images, keys, seed, call)
        drawing = NoiseKeys.of(seed or 0, keys)
        work = DecodeWork(coded.arrays["z"], drawing, arguments.output(output))
        return images_of(await self._submit(work, call), before=timing_of(coded))

    async def interpolate(
        self,
        images: NDArray[Any] | None,
        *,
        n: int,
        seeds: Sequence[int] = (),
        seed: int | None = None,
        output: Output = "mean",
        call: Call = NO_CALL,
    ) -> Images:
        """`n` images from one end to the other, both included; the ends are `images`, then `seeds`.

        An image's end is its reconstruction (at `seed`), a seed's the first image that it draws.
        The way is a great circle between their `prior_eps`: all of its points are as likely under
        the prior, and a lower group means the same along it.
        """
        arguments.two_ends(images, seeds)
        arguments.count("n", n, least=2)
        ends = [first_eps(seeds, self.bundle.manifest)]
        before = None
        if images is not None and len(images):
            arguments.images(images, self.bundle.manifest.image)
            coded = await self._encode(images, image_keys(images), seed, call)
            before, ends = timing_of(coded), [coded.arrays["prior_eps"], *ends]
        way = GreatCircle(np.concatenate(ends), n)
        warmth = np.ones((n, len(self.bundle.manifest.latent.groups)), dtype=np.float32)
        work = SampleWork(_positions(n, seed or 0, 0), warmth, arguments.output(output), way)
        return images_of(await self._submit(work, call), before=before)

    def _decoding(self, latents: NDArray[Any], output: Pixels, seed: int) -> DecodeWork:
        arguments.latents(latents, self.bundle.manifest.latent.dim)
        keys = _positions(len(latents), arguments.seed(seed), 0)
        return DecodeWork(latents, keys, arguments.output(output))

    async def _encode(
        self, images: NDArray[Any], keys: NDArray[np.uint64], seed: int | None, call: Call
    ) -> BatchResult:
        checked = None if seed is None else arguments.seed(seed)
        return await self._submit(EncodeWork(images, keys, checked), call)

    async def _submit(self, work: Work, call: Call) -> BatchResult:
        return await self.scheduler.submit(work, caller=call.caller, deadline=call.deadline)


def _positions(n: int, seed: int, first: int) -> NoiseKeys:
    """Noise of places `first` on in a request."""
    streams = np.arange(n, dtype=np.uint64) + np.uint64(first)
    return NoiseKeys(np.full(n, seed, dtype=np.uint64), streams, Purpose.SAMPLE)
