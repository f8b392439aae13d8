"""The client's methods on a bundle in this process: the same operations without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.api.response.streaming import piece_rows
from service.bundle import BundleError, manifest_to_json
from service.client import Computed, ScoreTable
from service.engine.options import Provider
from service.errors import InvalidInput
from service.operations.defaults import seed_or_drawn, temperatures
from service.operations.latents import resampled_groups
from service.operations.model import ModelRuntime, Scores, Timing
from service.repository.store import bundle_paths
from service.settings import load_settings

__all__ = ["LocalClient"]

Output = Literal["mean", "draw"]
T = TypeVar("T")


class LocalClient:
    """A loaded model behind the interface of `service.client.Client`, as far as commands use it."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime
        self._loop = asyncio.Runner()
        self._run(runtime.start())

    @classmethod
    def open(cls, bundle: Path | None, model: str | None, provider: Provider | None) -> LocalClient:
        """Load `bundle` (default: the settings' models; `model` chooses among several)."""
        settings = load_settings(models=bundle, provider=provider)
        paths = bundle_paths(settings.models)
        wanted = model or settings.default_model
        if wanted is not None and len(paths) > 1:
            paths = [path for path in paths if path.name == wanted] or paths
        runtime = ModelRuntime.load(paths[0], engine=settings.engine)
        if wanted is not None and runtime.name != wanted:
            raise BundleError(
                f"there is no model {wanted!r} at {settings.models}; the first is {runtime.name!r}"
            )
        return cls(runtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._runtime.stop(0.0))
        self._loop.close()

    def model(self) -> dict[str, Any]:
        """The part of ``GET /v1/models/{name}`` that commands need."""
        return {"manifest": manifest_to_json(self._runtime.bundle.manifest)}

    def sample(
        self,
        n: int | None,
        *,
        seed: int | None,
        temperature: float | list[float],
        output: Output,
        prior_eps: NDArray[np.float32] | None = None,
        resample: list[str] | None = None,
        keep: list[str] | None = None,
    ) -> Computed:
        """As `Client.sample`."""
        latent = self._runtime.bundle.manifest.latent
        groups = resampled_groups(latent, resample, keep)
        noisy = prior_eps is None or bool(groups) or output == "draw"
        chosen = seed_or_drawn(seed) if noisy else None
        if prior_eps is None and (resample is not None or keep is not None):
            raise InvalidInput("resample and keep say what becomes of prior_eps: give it as well")
        drawn = self._run(
            self._runtime.sample(
                n or (1 if prior_eps is None else len(prior_eps)),
                seed=chosen or 0,
                temperature=temperatures(temperature, latent),
                output=output,
                prior_eps=prior_eps,
                resample=groups,
            )
        )
        return self._computed(drawn.images, chosen, drawn.timing)

    def stream(
        self, n: int, *, seed: int | None, temperature: float | list[float], output: Output
    ) -> Iterator[NDArray[np.uint8]]:
        """As `Client.stream`."""
        chosen, manifest = seed_or_drawn(seed), self._runtime.bundle.manifest
        warmth, rows = temperatures(temperature, manifest.latent), piece_rows(manifest.image.dims)
        for first in range(0, n, rows):
            drawn = self._runtime.sample(
                min(rows, n - first), seed=chosen, temperature=warmth, output=output, first=first
            )
            yield self._run(drawn).images

    def encode(
        self,
        images: NDArray[np.uint8],
        *,
        seed: int | None,
        output: Literal["latents", "prior_eps"] = "latents",
    ) -> Computed:
        """As `Client.encode`."""
        coded = self._run(self._runtime.encode(images, seed=seed))
        return self._computed(getattr(coded, output), seed, coded.timing)

    def interpolate(
        self,
        images: NDArray[np.uint8] | None,
        n: int,
        *,
        seeds: tuple[int, ...],
        seed: int | None,
        output: Output,
    ) -> Computed:
        """As `Client.interpolate`."""
        way = self._run(
            self._runtime.interpolate(images, n=n, seeds=seeds, seed=seed, output=output)
        )
        return self._computed(way.images, seed, way.timing)

    def reconstruct(
        self, images: NDArray[np.uint8], *, seed: int | None, output: Output
    ) -> Computed:
        """As `Client.reconstruct`."""
        again = self._run(self._runtime.reconstruct(images, seed=seed, output=output))
        return self._computed(again.images, seed, again.timing)

    def score(
        self,
        images: NDArray[np.uint8],
        *,
        importance_samples: int | None,
        seed: int | None,
        alpha: float | None,
    ) -> ScoreTable:
        """As `Client.score`."""
        scoring = self._runtime.bundle.manifest.scoring
        level = scoring.alpha if alpha is None else alpha
        scores = self._run(
            self._runtime.score(
                images,
                importance_samples=importance_samples or scoring.default_importance_samples,
                seed=scoring.default_seed if seed is None else seed,
                alpha=level,
            )
        )
        return self._table(scores, level)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def _computed(self, array: NDArray[Any], seed: int | None, timing: Timing) -> Computed:
        runtime = self._runtime
        return Computed(
            array=array,
            model=runtime.name,
            version=runtime.bundle.manifest.version,
            bundle=runtime.bundle.hash,
            provider=runtime.provider,
            seed=seed,
            queue_seconds=timing.queue_seconds,
            compute_seconds=timing.compute_seconds,
        )

    def _table(self, scores: Scores, alpha: float) -> ScoreTable:
        return ScoreTable(
            log_likelihood_nats=scores.log_likelihood_nats,
            bits_per_dim=scores.bits_per_dim,
            elbo_nats=scores.elbo_nats,
            standard_error_nats=scores.standard_error_nats,
            effective_sample_size=scores.effective_sample_size,
            p_value=scores.p_value,
            anomalous=scores.anomalous,
            altered=np.zeros(len(scores.status), np.bool_),
            status=scores.status,
            estimator=scores.estimator,
            importance_samples=scores.importance_samples,
            seed=scores.seed,
            alpha=alpha,
            model=self._runtime.name,
            version=self._runtime.bundle.manifest.version,
            notes=[],
            decided=~np.isnan(scores.p_value),
        )
