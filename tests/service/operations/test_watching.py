"""Which scores count for a model's drift, and that it is said once."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from service.operations.model import Model
from service.verdicts.drift import Drift


async def moves(runtime, images, **options):
    before = runtime.drift.images
    await runtime.score(images, **options)
    return runtime.drift.images - before


def test_scores_with_the_bundles_own_options_count_once(perform, tiny_model):
    images = np.unique(tiny_model.images(8), axis=0)

    async def use(runtime):
        runtime.drift = Drift(runtime.bundle.reference.images)
        own = runtime.manifest.scoring
        return [
            await moves(runtime, images, seed=own.default_seed + 1),
            await moves(runtime, images, importance_samples=1),
            await moves(runtime, images, importance_samples=3),  # which has no calibration
            await moves(runtime, images, verdict=False),
            await moves(runtime, images, altered=np.ones(len(images), bool)),
            await moves(runtime, images, alpha=0.5, fdr=0.1),
            await moves(runtime, images),
        ]

    assert perform(use) == [0, 0, 0, 0, 0, len(images), 0]


@pytest.mark.parametrize(("folds", "watches"), [(1, True), (5, False)])
def test_a_crossed_calibration_watches_nothing(tiny, tmp_path, folds, watches):
    """Its images were ranked by densities of the others, and what comes is not."""
    whole = tiny.write_tiny_bundle(tmp_path / "whole").manifest.calibration
    spec = whole.model_dump(mode="json") | {"folds": folds}
    tiny.write_tiny_bundle(tmp_path / "tiny", calibration=spec)
    model = Model.load(tmp_path / "tiny", provider="cpu")
    assert (model.drift is not None) == watches


def test_drift_is_logged_once(perform, caplog):
    strange = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)

    async def use(runtime):
        runtime.drift = Drift(runtime.bundle.reference.images)
        for image in strange:
            await runtime.score(image[None])
        return runtime.drift.log_martingale

    with caplog.at_level(logging.WARNING, "iafvae"):
        assert perform(use) > 3
    assert [r for r in caplog.records if "no longer like" in r.message] == caplog.records[:1]
