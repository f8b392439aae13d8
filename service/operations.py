"""The operations of a loaded model: what every protocol's routes call, without HTTP.

Arguments are checked here, work is made of them, the scheduler runs it, and numbers come back as
arrays with the time they took. All randomness is a function of the arguments: the same call gives
the same bytes alone, among others, and on another replica.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service import arguments
from service.batching import batchers
from service.bundle import Bundle, load_bundle
from service.engine import Engine, Provider
from service.errors import InvalidInput
from service.hardware import available_cores
from service.interpolation import great_circle
from service.noise import Purpose, image_keys
from service.results import Call, Images, Latents, Rendered, Scores, Timing
from service.scheduler import BatchResult, Scheduler, SchedulerObserver
from service.scoring import estimate, p_values, statuses
from service.works import DecodeWork, EncodeWork, NoiseKeys, Pixels, SampleWork, ScoreWork, Work

__all__ = ["Call", "Images", "Latents", "ModelRuntime", "Rendered", "Scores", "Timing"]

Output = Literal["mean", "draw"]
NO_CALL = Call()


class ModelRuntime:
    """One loaded bundle: verified, warmed and scheduled. Made by `load`, then `start`."""

    def __init__(self, bundle: Bundle, engine: Engine, scheduler: Scheduler) -> None:
        self.bundle, self.engine, self.scheduler = bundle, engine, scheduler
        self.name = bundle.manifest.name
        self.provider, self.precision = engine.provider, engine.precision
        self.backend = engine.backend

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        provider: Provider = "auto",
        threads: int = 1,
        workers: int | None = None,
        max_batch_rows: int | None = None,
        max_queue_rows: int = 32_768,
        observe: Callable[[str], SchedulerObserver] | None = None,
    ) -> ModelRuntime:
        """Load, verify and warm the bundle at `path`; blocks.

        threads: of one run on CPU; workers: runs at once on CPU (None: one a core that the process
        may use); max_batch_rows: upper limit, where the provider's own choice is larger; observe:
        called with the model's name for the observer of its scheduler.
        Raises BundleError, or ProviderUnavailable where `provider` was demanded and is not there.
        """
        bundle = load_bundle(path)
        engine = Engine(bundle, provider=provider, threads=threads)
        engine.warm()
        cpu = engine.concurrency
        scheduler = Scheduler(
            engine,
            batchers(bundle.manifest),
            max_batch_rows=min(engine.max_rows, max_batch_rows or engine.max_rows),
            max_queue_rows=max_queue_rows,
            workers=(workers or max(1, available_cores() // threads)) if cpu else 1,
            prefetch=0 if cpu else 1,
            observer=observe(bundle.manifest.name) if observe else None,
        )
        return cls(bundle, engine, scheduler)

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
        """Accept no more, and give what waits `drain_seconds`."""
        await self.scheduler.stop(drain_seconds)

    async def sample(
        self,
        n: int,
        *,
        seed: int,
        temperature: Sequence[float],
        output: Output = "mean",
        first: int = 0,
        call: Call = NO_CALL,
    ) -> Images:
        """Images `first` to ``first + n - 1`` of `seed`, at one temperature a latent group."""
        arguments.count("n", n)
        arguments.seed(first, "first")
        warmth = arguments.temperature(temperature, len(self.bundle.manifest.latent.groups))
        work = SampleWork(
            _positions(n, arguments.seed(seed), first),
            np.broadcast_to(warmth, (n, len(warmth))),
            arguments.output(output),
        )
        return _images(await self._submit(work, call))

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
        return _rendered(await self._submit(SampleWork(keys, np.stack(warmth), "both"), call))

    async def decode(
        self,
        latents: NDArray[Any],
        *,
        output: Output = "mean",
        seed: int = 0,
        call: Call = NO_CALL,
    ) -> Images:
        """Images of `latents` float32 ``[n, D]``; seed: for drawing pixels."""
        return _images(await self._submit(self._decoding(latents, output, seed), call))

    async def decode_each(
        self, latents: NDArray[Any], *, seed: int = 0, call: Call = NO_CALL
    ) -> Rendered:
        """Means, their pixels, and draws of `latents` float32 ``[n, D]``."""
        return _rendered(await self._submit(self._decoding(latents, "both", seed), call))

    async def encode(
        self, images: NDArray[Any], *, seed: int | None = None, call: Call = NO_CALL
    ) -> Latents:
        """Latents of `images` uint8 ``[n, C, H, W]``: drawn with `seed`, or at eps = 0."""
        arguments.images(images, self.bundle.manifest.image)
        result = await self._encode(images, image_keys(images), seed, call)
        return Latents(result.arrays["z"], result.arrays["prior_eps"], _timing(result))

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
        arguments.images(images, self.bundle.manifest.image)
        k = arguments.count("importance_samples", importance_samples)
        arguments.alpha(alpha)
        work = ScoreWork(images, image_keys(images), arguments.seed(seed), k)
        result = await self._submit(work, call)
        log_weight = result.arrays["log_weight"].reshape(len(images), k)
        kl = result.arrays["kl"].reshape(len(images), k, -1)
        return self._scores(log_weight, kl, seed, alpha, _timing(result))

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
        drawing = NoiseKeys(_seeds(len(images), seed or 0), keys, Purpose.IMAGE)
        work = DecodeWork(coded.arrays["z"], drawing, arguments.output(output))
        return _images(await self._submit(work, call), before=_timing(coded))

    async def interpolate(
        self,
        images: NDArray[Any],
        *,
        n: int,
        seed: int | None = None,
        output: Output = "mean",
        call: Call = NO_CALL,
    ) -> Images:
        """`n` images on the way from one of two to the other, both ends included.

        The way is a great circle between their `prior_eps`: all of its points are as likely under
        the prior, and a lower group means the same along it.
        """
        arguments.images(images, self.bundle.manifest.image)
        if len(images) != 2:
            raise InvalidInput(f"interpolation takes two images, not {len(images)}")
        arguments.count("n", n, least=2)
        coded = await self._encode(images, image_keys(images), seed, call)
        eps = great_circle(coded.arrays["prior_eps"], n)
        warmth = np.ones((n, len(self.bundle.manifest.latent.groups)), dtype=np.float32)
        keys = _positions(n, seed or 0, 0)
        work = SampleWork(keys, warmth, arguments.output(output), eps)
        return _images(await self._submit(work, call), before=_timing(coded))

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

    def _scores(
        self,
        log_weight: NDArray[Any],
        kl: NDArray[Any],
        seed: int,
        alpha: float,
        timing: Timing,
    ) -> Scores:
        k = log_weight.shape[1]
        estimates = estimate(log_weight)
        reference = self.bundle.calibration.get(k)
        p_value = p_values(estimates.log_likelihood_nats, reference)
        dims = self.bundle.manifest.image.dims
        return Scores(
            log_likelihood_nats=estimates.log_likelihood_nats,
            bits_per_dim=-estimates.log_likelihood_nats / (dims * math.log(2.0)),
            elbo_nats=estimates.elbo_nats,
            standard_error_nats=estimates.standard_error_nats,
            effective_sample_size=estimates.effective_sample_size,
            p_value=p_value,
            anomalous=p_value <= alpha,
            status=statuses(estimates, reference is not None),
            estimator="elbo" if k == 1 else "importance_weighted",
            importance_samples=k,
            seed=seed,
            kl_nats=kl.mean(axis=1, dtype=np.float64) if k > 1 else kl[:, 0].astype(np.float64),
            timing=timing,
        )


def _seeds(n: int, seed: int) -> NDArray[np.uint64]:
    return np.full(n, seed, dtype=np.uint64)


def _positions(n: int, seed: int, first: int) -> NoiseKeys:
    """Noise of places `first` on in a request."""
    streams = np.arange(n, dtype=np.uint64) + np.uint64(first)
    return NoiseKeys(_seeds(n, seed), streams, Purpose.SAMPLE)


def _timing(result: BatchResult) -> Timing:
    return Timing(queue_seconds=result.queue_seconds, compute_seconds=result.compute_seconds)


def _images(result: BatchResult, before: Timing | None = None) -> Images:
    timing = _timing(result)
    arrays = result.arrays
    whole = timing if before is None else before + timing
    return Images(arrays["images"], arrays["finite"], whole)


def _rendered(result: BatchResult) -> Rendered:
    arrays = result.arrays
    return Rendered(arrays["images"], arrays["draw"], arrays["mean"], _timing(result))
