"""The client's face on a bundle in this process: the same operations without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from service.bundle import BundleError, manifest_to_json, read_manifest
from service.client import Computed, ScoreTable
from service.client.results import NUMBERS
from service.engine.options import Provider
from service.operations.checks import at_most
from service.operations.model import Model, Output, pieces
from service.operations.results import Result
from service.repository.store import bundle_paths
from service.repository.versions import answering, split_reference
from service.settings import Settings, load_settings

__all__ = ["LocalClient"]

LARGEST_K = 10_000  # importance samples; a server's limit is lower, for others wait there


class LocalClient:
    """A loaded model behind the interface of `service.client.Client`, as far as commands use it."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._model, self._settings = model, settings
        model.drift = None  # files are no stream: their order is their names'
        self._loop = asyncio.Runner()
        self._run = self._loop.run
        self._run(model.start())

    @classmethod
    def open(cls, bundle: Path | None, model: str | None, provider: Provider | None) -> LocalClient:
        """Load the model that a server would answer with.

        bundle: one, or a directory of them, by default the settings'; model: name or
        ``name@version``. Raises BundleError, ProviderUnavailable, SettingsError.
        """
        settings = load_settings(models=bundle, provider=provider)
        path = _find(settings.models, model or settings.default_model)
        return cls(Model.load(path, engine=settings.engine), settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._model.stop(0.0))
        self._loop.close()

    def model(self) -> dict[str, Any]:
        """The part of ``GET /v1/models/{name}`` that commands need."""
        who = self._model.who
        told = {"name": who["model"], **{k: who[k] for k in ("version", "bundle", "provider")}}
        return told | {"manifest": manifest_to_json(self._model.manifest)}

    def sample(self, n: int | None, **options: Any) -> Computed:
        """Images from the prior, or changed in its noise; options as `Model.sampling` has them."""
        drawn = self._run(self._model.sample(n, **options))
        return self._computed(drawn.images, drawn)

    def stream(
        self, n: int, *, seed: int | None, temperature: float | list[float], output: Output
    ) -> Iterator[NDArray[np.uint8]]:
        """`n` images of `sample`, piece by piece."""
        work = self._model.sampling(n, seed=seed, temperature=temperature, output=output)
        for piece in pieces(work, self._model.manifest.image.dims):
            yield self._run(self._model.draw(piece)).images

    def encode(
        self, images: NDArray[np.uint8], *, output: Literal["latents", "prior_eps"], **options: Any
    ) -> Computed:
        """Latents of `images`, or their prior noise; options as `Model.encode` has them."""
        coded = self._run(self._model.encode(images, **options))
        return self._computed(getattr(coded, output), coded)

    def interpolate(
        self, images: NDArray[np.uint8] | None, n: int, *, seeds: Sequence[int], **options: Any
    ) -> Computed:
        """Images on the way between two ends; options as `Model.interpolate` has them."""
        way = self._run(self._model.interpolate(images, n=n, seeds=seeds, **options))
        return self._computed(way.images, way)

    def reconstruct(self, images: NDArray[np.uint8], **options: Any) -> Computed:
        """`images` through their latents and back; options as `Model.reconstruct` has them."""
        again = self._run(self._model.reconstruct(images, **options))
        return self._computed(again.images, again)

    def score(
        self,
        images: NDArray[np.uint8],
        *,
        importance_samples: int | None = None,
        altered: NDArray[np.bool_] | None = None,
        **options: Any,
    ) -> ScoreTable:
        """Log-likelihoods of `images` and how unusual they are; options as `Model.score` has."""
        samples = importance_samples or self._model.manifest.scoring.default_importance_samples
        largest = max(LARGEST_K, self._settings.max_importance_samples)
        at_most("importance_samples", samples, largest)
        altered = np.zeros(len(images), np.bool_) if altered is None else altered
        options |= {"importance_samples": importance_samples, "altered": altered}
        scores = self._run(self._model.score(images, **options))
        return ScoreTable(
            **{name: getattr(scores, name) for name in (*NUMBERS, "status", "evidence")},
            **scores.resolved,
            anomalous=np.array(scores.anomalous, np.bool_),
            discovery=np.array(scores.discovery, np.bool_),
            altered=altered,
            model=self._model.name,
            version=self._model.version,
            notes=list(scores.notes),
            decided=np.array([each is not None for each in scores.anomalous], np.bool_),
        )

    def anomalies(
        self, images: NDArray[np.uint8], *, seed: int | None = None, boxes: int = 3
    ) -> tuple[NDArray[np.float32], list[list[dict[str, Any]]]]:
        """The maps of `images` and the largest boxes of each."""
        found = self._run(self._model.anomaly_map(images, seed=seed, boxes=boxes))
        return found.maps, [[asdict(box) for box in each] for each in found.boxes]

    def _computed(self, array: NDArray[Any], result: Result) -> Computed:
        who: dict[str, Any] = {k: v for k, v in self._model.who.items() if k != "precision"}
        return Computed(
            array=array,
            **who,
            seed=result.seed,
            queue_seconds=result.queue_seconds,
            compute_seconds=result.compute_seconds,
        )


def _find(models: Path, wanted: str | None) -> Path:
    """The bundle at or in `models` that is `wanted`; without a version its newest release."""
    found: dict[str, dict[str, Path]] = {}  # name -> version -> path
    refusals = []
    for path in bundle_paths(models):
        try:
            manifest, _ = read_manifest(path)
        except (BundleError, OSError) as error:  # a server leaves it aside, too
            refusals.append(error)
            continue
        found.setdefault(manifest.name, {}).setdefault(manifest.version, path)
    if not found:
        raise refusals[0]
    name, version = split_reference(wanted, None)
    versions = found.get(name or next(iter(found)), {})
    if versions and version is None:
        version = answering(versions)
    if version not in versions:
        there = ", ".join(f"{one}@{each}" for one, own in found.items() for each in own)
        raise BundleError(f"there is no model {wanted!r} at {models}; there are {there}")
    return versions[version]
