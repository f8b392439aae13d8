"""The operations of a loaded model: what routes and the command line call, without HTTP.

Options are resolved and checked here, work is made of them, the scheduler runs it, and numbers come
back as arrays with the time they took. All randomness is a function of the arguments: the same call
gives the same bytes alone, among others, and on another replica.

Every operation takes `caller` (whose turn it is counted as: a key or a connection) and `deadline`
(until when the answer is of use, on the clock of `time.monotonic`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from service import estimators
from service.bundle import Bundle, load_bundle
from service.engine.base import EngineBase
from service.engine.choice import make_engine
from service.engine.hardware import available_cores
from service.engine.options import EngineOptions
from service.errors import InvalidInput, WrongDtype, WrongShape
from service.noise import image_keys
from service.operations import checks
from service.operations.latents import edited, first_eps, great_circle, resampled_groups
from service.operations.results import (
    AnomalyMaps,
    Images,
    Latents,
    LogLikelihoods,
    Rendered,
    Scores,
)
from service.scheduler.batching import batchers
from service.scheduler.scheduler import Scheduler, SchedulerObserver
from service.scheduler.work import (
    Asked,
    DecodeWork,
    EncodeWork,
    EvidenceWork,
    Job,
    Pixels,
    SampleWork,
    ScoreWork,
    first_images,
    image_noise,
    positions,
)
from service.verdicts.conformal import certified_alpha
from service.verdicts.decisions import decide, discovered, fdr_notes
from service.verdicts.drift import Drift
from service.verdicts.reference import Judgement, Measured, Reference, map_notes, measured_of

__all__ = ["MAX_PIECE_ROWS", "Model", "Output", "piece_rows", "pieces"]

logger = logging.getLogger("iafvae")

Output = Literal["mean", "draw"]
U8 = NDArray[np.uint8]
P = ParamSpec("P")
T = TypeVar("T")
AT_ZERO = "encoded at eps = 0, the centre of the posterior: give a seed to draw from it"
INLINE_IMAGES = 4  # more are judged beside the event loop
DRAWN_WITH_0 = "pixels drawn with seed 0, as none was given"
# A run of no more than this is over before two changes of threads would have paid; while the event
# loop computes it, nobody else is there to wait.
DIRECT_SECONDS = 0.002
PIECE_BYTES = 2**18  # of a piece: two or three exist at a time, whatever the request asks for
MAX_PIECE_ROWS = 1024


class Model:
    """One loaded bundle: verified, warmed and scheduled. Made by `load`, then `start`."""

    def __init__(self, bundle: Bundle, engine: EngineBase, scheduler: Scheduler) -> None:
        self.bundle, self.engine, self.scheduler = bundle, engine, scheduler
        self.manifest = bundle.manifest
        self.name, self.version = bundle.manifest.name, bundle.manifest.version
        self.provider, self.precision = engine.provider, engine.precision
        # Who computes, as headers and metrics say it.
        self.who = {"model": self.name, "version": self.version, "bundle": bundle.hash}
        self.who |= {"provider": self.provider, "precision": self.precision}
        reference = bundle.reference
        spec = bundle.manifest.calibration
        # Where each calibration image was ranked by a density of the others, what comes is not
        # ranked as they were: bets on it would be no martingale.
        self.drift = None
        if reference is not None and spec is not None and spec.folds == 1:
            self.drift = Drift(reference.images)
        # What an answer says of the images that it compares with.
        self._calibration = spec and {"name": spec.split, "images": spec.images, "date": spec.date}
        # K -> what small requests wait to be judged in this turn of the event loop.
        self._unjudged: dict[int, tuple[list[Measured], asyncio.Task[Judgement]]] = {}

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
    ) -> Model:
        """Load, verify and warm the bundle at `path`; blocks.

        engine: what computes, of which `changes` (``provider="cpu"``) replace fields; workers: runs
        at once on CPU (None: one a core that the process may use); max_batch_rows: upper limit,
        where the backend's own choice is larger; hang_seconds: after which a batch counts as a
        fault of the device; observe: called with the model's name for its scheduler's observer.
        Raises BundleError, or ProviderUnavailable where what was demanded is not there.
        """
        bundle = load_bundle(path)
        options = replace(engine or EngineOptions(), **changes)
        streams = workers or max(1, available_cores() // options.threads)
        made = make_engine(bundle, options)
        # On a CPU as many batches run as there are cores, each on one thread. A GPU has one at a
        # time, and while it computes, one more is assembled, its noise by all cores.
        several = made.concurrency
        scheduler = Scheduler(
            made,
            batchers(bundle.manifest, 1 if several else streams),
            max_batch_rows=min(made.max_rows, max_batch_rows or made.max_rows),
            max_queue_rows=max_queue_rows,
            workers=streams if several else 1,
            prefetch=0 if several else 1,
            hang_seconds=hang_seconds,
            direct_seconds=DIRECT_SECONDS if several else 0.0,
            observer=observe(bundle.manifest.name) if observe else None,
        )
        if bundle.reference is not None:
            bundle.reference.warm()
        return cls(bundle, made, scheduler)

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
        """Accept no more, give what waits `drain_seconds`, and free the memory.

        Where a run hangs its memory is left to the end of the process: closing would hang, too.
        """
        if await self.scheduler.stop(drain_seconds):
            await asyncio.to_thread(self.engine.close)

    def sampling(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        output: Output = "mean",
        prior_eps: NDArray[Any] | None = None,
        resample: Sequence[str] | None = None,
        keep: Sequence[str] | None = None,
    ) -> SampleWork:
        """The images that `sample` draws, not drawn yet: `draw` computes them, or pieces of them.

        n: how many (None: 1, or one for each row of `prior_eps`); seed: None draws one;
        temperature: one number, or one a latent group; prior_eps: float32 ``[n, D]`` or ``[1, D]``,
        instead of the seed's noise but for the latent groups to `resample`, or all but those to
        `keep`.
        """
        latent = self.manifest.latent
        if prior_eps is None and (resample is not None or keep is not None):
            raise InvalidInput("resample and keep say what becomes of prior_eps: send it as well")
        if prior_eps is not None:
            checks.latents(prior_eps, latent.dim, "prior_eps")
        if n is None:
            n = 1 if prior_eps is None else len(prior_eps)
        checks.count("n", n)
        groups = [] if prior_eps is None else resampled_groups(latent, resample, keep)
        noisy = prior_eps is None or bool(groups) or output == "draw"
        chosen = checks.drawn_seed() if seed is None else checks.seed(seed)
        seed = chosen if noisy else None  # without noise there is none to tell
        heats = checks.temperature(temperature, latent)
        keys = positions(seed or 0)
        resolved: dict[str, Any] = {"output": output, "seed": seed, "temperature": heats}
        eps = None
        if prior_eps is not None:
            resolved["resampled"] = groups
            eps = edited(prior_eps, n, keys, latent, groups)
        return SampleWork(
            keys=keys,
            temperature=np.broadcast_to(np.array(heats, dtype=np.float32), (n, len(heats))),
            output=checks.output(output),
            eps=eps,
            resolved=resolved,
        )

    async def draw(self, work: SampleWork, **asked: Unpack[Asked]) -> Images:
        """The images of `work`, which `sampling` made."""
        job = await self.scheduler.submit(work, **asked)
        return _images(job, work.resolved)

    async def sample(
        self,
        n: int | None = None,
        *,
        caller: str = "",
        deadline: float | None = None,
        **options: Any,
    ) -> Images:
        """Images from the prior, or changed in its noise; options as `sampling` has them."""
        return await self.draw(self.sampling(n, **options), caller=caller, deadline=deadline)

    async def sample_each(
        self, seeds: Sequence[int], *, temperature: NDArray[Any], **asked: Unpack[Asked]
    ) -> Rendered:
        """The first image of each seed; temperature: ``[n, G]``. Means, their pixels, and draws."""
        checks.count("the number of seeds", len(seeds))
        heats = [checks.temperature(row.tolist(), self.manifest.latent) for row in temperature]
        if len(heats) != len(seeds):
            raise InvalidInput("temperature must have one row for each seed")
        keys = first_images(np.array([checks.seed(seed) for seed in seeds], dtype=np.uint64))
        work = SampleWork(keys=keys, temperature=np.array(heats, np.float32), output="both")
        return _rendered(await self.scheduler.submit(work, **asked))

    async def decode(
        self,
        latents: NDArray[Any],
        *,
        output: Output = "mean",
        seed: int | None = None,
        **asked: Unpack[Asked],
    ) -> Images:
        """Images of `latents` float32 ``[n, D]``; seed: for drawing pixels, None draws one."""
        if checks.output(output) != "draw":
            seed = None  # a mean takes no noise
        elif seed is None:
            seed = checks.drawn_seed()
        work = self._decoding(latents, output, seed or 0)
        job = await self.scheduler.submit(work, **asked)
        return _images(job, {"output": output, "seed": seed})

    async def decode_each(
        self, latents: NDArray[Any], *, seed: int = 0, **asked: Unpack[Asked]
    ) -> Rendered:
        """Means, their pixels, and draws of `latents` float32 ``[n, D]``."""
        work = self._decoding(latents, "both", seed)
        return _rendered(await self.scheduler.submit(work, **asked))

    async def encode(
        self, images: U8, *, seed: int | None = None, **asked: Unpack[Asked]
    ) -> Latents:
        """Latents of `images` uint8 ``[n, C, H, W]``: drawn with `seed`, or at eps = 0."""
        job = await self._encode(images, seed, **asked)
        return Latents(
            latents=job.arrays["z"],
            prior_eps=job.arrays["prior_eps"],
            seed=seed,
            resolved={"seed": seed},
            queue_seconds=job.queue_seconds,
            compute_seconds=job.compute_seconds,
        )

    async def score(
        self,
        images: U8,
        *,
        importance_samples: int | None = None,
        seed: int | None = None,
        alpha: float | None = None,
        fdr: float | None = None,
        altered: NDArray[np.bool_] | None = None,
        verdict: bool = True,
        **asked: Unpack[Asked],
    ) -> Scores:
        """Log-likelihoods of `images` uint8 ``[n, C, H, W]`` and how unusual they are.

        What is left out is the bundle's own: K, seed 0, alpha. fdr: the share of false ones among
        the discoveries of all `images` together; altered: which were resized or converted; verdict:
        False where nobody asks for p-values and what follows from them. Images that are judged with
        the bundle's own K and seed count for `drift`.
        """
        scoring = self.manifest.scoring
        level = scoring.alpha if alpha is None else checks.alpha(alpha)
        fdr = None if fdr is None else checks.alpha(fdr, "fdr")
        work = self._weighing(images, importance_samples, seed)
        k = work.samples
        reference = self.bundle.reference if verdict else None
        if reference is not None and k in reference.distances:
            work = EvidenceWork(images=images, seed=work.seed, samples=k)
        job = await self.scheduler.submit(work, **asked)
        log_weight = job.arrays["log_weight"].reshape(len(images), -1)  # [n, K]
        kl = job.arrays["kl"].reshape(*log_weight.shape, -1)  # [n, K, G]
        found = estimators.estimate(log_weight)
        judged = None
        if reference is not None and "statistics" in job.arrays:
            binary = self.manifest.likelihood.binary
            nats = {k: found.log_likelihood_nats}
            measured = measured_of(nats, job.arrays, images, binary=binary)
            judged = await self._judged(reference, k, measured)
        spec = self.manifest.calibration if judged is not None else None
        n = None if spec is None else spec.images
        p_value = np.full(len(images), np.nan) if judged is None else judged.p_value
        certified = certified_alpha(level, n) if n and spec and spec.folds == 1 else None
        strangers = None if spec is None or spec.fitted else altered
        known = p_value if strangers is None else np.where(strangers, np.nan, p_value)
        anomalous, status = decide(p_value, found.finite, strangers, level, n)
        if judged and (k, work.seed) == (scoring.default_importance_samples, scoring.default_seed):
            await self._watch(images, p_value, strangers)
        return Scores(
            **vars(found),
            bits_per_dim=found.log_likelihood_nats
            * (-1.0 / (self.manifest.image.dims * math.log(2.0))),
            p_value=p_value,
            anomalous=anomalous,
            discovery=discovered(known, fdr),
            status=status,
            evidence={} if judged is None else judged.parts,
            kl_nats=kl.mean(axis=1, dtype=np.float64) if k > 1 else kl[:, 0].astype(np.float64),
            seed=work.seed,
            resolved={
                "estimator": "elbo" if k == 1 else "importance_weighted",
                "importance_samples": k,
                "seed": work.seed,
                "alpha": level,
                "certified_alpha": certified,
                "fdr": fdr,
                "calibration": self._calibration if judged is not None else None,
            },
            notes=(*found.notes, *fdr_notes(len(images), fdr, n)),
            queue_seconds=job.queue_seconds,
            compute_seconds=job.compute_seconds,
        )

    async def anomaly_map(
        self, images: U8, *, seed: int | None = None, boxes: int = 3, **asked: Unpack[Asked]
    ) -> AnomalyMaps:
        """Where `images` uint8 ``[n, C, H, W]`` are unlike what the model expects of each.

        seed: of a binary model's pixels; boxes: how many of the largest, at most. Raises
        InvalidInput where the bundle was not calibrated: nothing says then what is usual.
        """
        reference = self.bundle.reference
        if reference is None:
            raise InvalidInput(
                f"{self.name} was exported without calibration, so nothing says what is usual at a "
                "pixel: calibrate it with 'iafvae-train calibrate'"
            )
        self._check(images)
        seed = self.manifest.scoring.default_seed if seed is None else checks.seed(seed)
        work = EvidenceWork(images=images, seed=seed, samples=1)
        job = await self.scheduler.submit(work, **asked)
        residual = job.arrays["residual"]
        return AnomalyMaps(
            maps=await _aside(len(images), reference.map, residual),
            boxes=await _aside(len(images), reference.largest_boxes, residual, boxes),
            seed=seed,
            resolved={"seed": seed, "calibration": self._calibration},
            notes=map_notes(len(self.manifest.latent.groups)),
            queue_seconds=job.queue_seconds,
            compute_seconds=job.compute_seconds,
        )

    async def log_likelihood(
        self,
        images: U8,
        *,
        importance_samples: int | None = None,
        seed: int | None = None,
        **asked: Unpack[Asked],
    ) -> LogLikelihoods:
        """The log-likelihoods of `score`, without what follows from them."""
        work = self._weighing(images, importance_samples, seed)
        job = await self.scheduler.submit(work, **asked)
        log_weight = job.arrays["log_weight"].reshape(len(images), -1)
        return LogLikelihoods(
            nats=estimators.log_likelihoods(log_weight),
            seed=work.seed,
            queue_seconds=job.queue_seconds,
            compute_seconds=job.compute_seconds,
        )

    async def reconstruct(
        self,
        images: U8,
        *,
        seed: int | None = None,
        output: Output = "mean",
        **asked: Unpack[Asked],
    ) -> Images:
        """Images decoded from the latents of `images`; drawn pixels without a seed are seed 0's."""
        checks.output(output)
        coded = await self._encode(images, seed, **asked)
        keys = image_noise(seed or 0, images)
        work = DecodeWork(z=coded.arrays["z"], keys=keys, output=output)
        job = await self.scheduler.submit(work, **asked)
        return _images(job, {"output": output, "seed": seed}, coded, _notes(seed, output))

    async def interpolate(
        self,
        images: U8 | None = None,
        *,
        n: int = 8,
        seeds: Sequence[int] = (),
        seed: int | None = None,
        output: Output = "mean",
        **asked: Unpack[Asked],
    ) -> Images:
        """`n` images from one end to the other, both included; the ends are `images`, then `seeds`.

        An image's end is its reconstruction (at `seed`), a seed's the first image that it draws.
        The way is a great circle between their `prior_eps`: all of its points are as likely under
        the prior, and a lower group means the same along it.
        """
        checks.two_ends(images, seeds)
        checks.output(output)
        noise_seed = 0 if seed is None else checks.seed(seed)
        checks.count("n", n, least=2)
        latent = self.manifest.latent
        ends = [first_eps(seeds, latent.dim)]
        coded = None
        if images is not None and len(images):
            coded = await self._encode(images, seed, **asked)
            ends.insert(0, coded.arrays["prior_eps"])
        way = great_circle(np.concatenate(ends), n)
        heats = np.ones((n, len(latent.groups)), dtype=np.float32)
        keys = positions(noise_seed)
        work = SampleWork(keys=keys, temperature=heats, output=output, eps=way)
        job = await self.scheduler.submit(work, **asked)
        notes = _notes(seed, output, encoded=coded is not None)
        return _images(job, {"output": output, "seed": seed}, coded, notes)

    async def _judged(self, reference: Reference, k: int, measured: Measured) -> Judgement:
        """p-values. Small requests that a batch has answered are judged together: of one image most
        of the time goes into calls, which are as many for all."""
        count = len(measured.statistics)
        if count > INLINE_IMAGES:
            return await asyncio.to_thread(reference.judge, k, measured)
        if not self._unjudged and not self.scheduler.jobs:
            return reference.judge(k, measured)
        if k not in self._unjudged:
            self._unjudged[k] = [], asyncio.create_task(self._judge_together(reference, k))
        waiting, task = self._unjudged[k]
        start = sum(len(each.statistics) for each in waiting)
        waiting.append(measured)
        judged = await asyncio.shield(task)  # who leaves does so alone
        return judged if len(waiting) == 1 else judged.take(slice(start, start + count))

    async def _judge_together(self, reference: Reference, k: int) -> Judgement:
        waiting, _ = self._unjudged.pop(k)
        return reference.judge(k, Measured.joined(waiting) if len(waiting) > 1 else waiting[0])

    async def _watch(
        self, images: U8, p_values: NDArray[np.float64], strangers: NDArray[np.bool_] | None
    ) -> None:
        """Count images for drift, but for those that the calibration says nothing of."""
        if self.drift is None:
            return
        known = slice(None) if strangers is None else ~strangers
        keys = await _aside(len(images), image_keys, images[known])
        if self.drift.add(keys.tolist(), p_values[known].tolist()):
            logger.warning(
                "%s: the images that come are no longer like those it was calibrated on "
                "(log martingale %.1f after %d images)",
                self.name,
                self.drift.log_martingale,
                self.drift.images,
            )

    def _weighing(self, images: U8, importance_samples: int | None, seed: int | None) -> ScoreWork:
        scoring = self.manifest.scoring
        k = scoring.default_importance_samples
        if importance_samples is not None:
            k = checks.count("importance_samples", importance_samples)
        seed = scoring.default_seed if seed is None else checks.seed(seed)
        self._check(images)
        return ScoreWork(images=images, seed=seed, samples=k)

    def _check(self, images: U8) -> None:
        """uint8 ``[n, C, H, W]`` of the model's size, n at least 1, below its number of levels."""
        spec = self.manifest.image
        if images.dtype != np.uint8:
            raise WrongDtype(f"images must be uint8, not {images.dtype}")
        if images.shape[1:] != spec.shape or not len(images):
            wanted = ", ".join(map(str, spec.shape))
            raise WrongShape(
                f"images must have the shape [n, {wanted}] with n at least 1, not "
                f"{list(images.shape)}"
            )
        if spec.levels < 256 and int(images.max()) >= spec.levels:
            raise InvalidInput(f"pixels must be below {spec.levels}")

    def _decoding(self, latents: NDArray[Any], output: Pixels, seed: int) -> DecodeWork:
        checks.latents(latents, self.manifest.latent.dim)
        keys = positions(checks.seed(seed))
        return DecodeWork(z=latents, keys=keys, output=output)

    async def _encode(self, images: U8, seed: int | None, **asked: Unpack[Asked]) -> Job:
        self._check(images)
        chosen = None if seed is None else checks.seed(seed)
        work = EncodeWork(images=images, seed=chosen)
        return await self.scheduler.submit(work, **asked)


def piece_rows(image_bytes: int) -> int:
    """How many images of so many bytes are computed at a time."""
    return max(1, min(MAX_PIECE_ROWS, PIECE_BYTES // image_bytes))


def pieces(work: SampleWork, image_bytes: int) -> Iterator[SampleWork]:
    """`work` in parts that are drawn one after another: memory stays flat."""
    rows = piece_rows(image_bytes)
    for start in range(0, work.rows, rows):
        yield work.piece(start, min(start + rows, work.rows))


async def _aside(images: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function`, in a thread where it has more than a few images to do."""
    if images <= INLINE_IMAGES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def _images(
    job: Job, resolved: dict[str, Any], before: Job | None = None, notes: tuple[str, ...] = ()
) -> Images:
    """The rows of ``sample`` or ``decode``; before: a job of the operation that came first."""
    queued, computed = job.queue_seconds, job.compute_seconds
    if before is not None:
        queued, computed = queued + before.queue_seconds, computed + before.compute_seconds
    return Images(
        images=job.arrays["images"],
        finite=job.arrays["finite"],
        seed=resolved["seed"],
        resolved=resolved,
        notes=notes,
        queue_seconds=queued,
        compute_seconds=computed,
    )


def _rendered(job: Job) -> Rendered:
    return Rendered(
        images=job.arrays["images"],
        draw=job.arrays["draw"],
        mean=job.arrays["mean"],
        finite=job.arrays["finite"],
        queue_seconds=job.queue_seconds,
        compute_seconds=job.compute_seconds,
    )


def _notes(seed: int | None, output: str, *, encoded: bool = True) -> tuple[str, ...]:
    """What a reader must know of noise that was not asked for."""
    if seed is not None:
        return ()
    return (*([AT_ZERO] if encoded else []), *([DRAWN_WITH_0] if output == "draw" else []))
