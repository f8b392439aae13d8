"""The ablations: each row changes what it says, from outside, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import training.fit.trainer
from benchmarks.ablations import ROWS, Row, markdown, rows_for
from model.config import ConvVaeConfig, DiagonalPosterior, IafPosterior
from training.config import OptimConfig, RunConfig, Runtime, run_preset
from training.data import ImageData
from training.fit.trainer import Trainer

BY_NAME = {row.name: row for row in ROWS}
EAGER = Runtime(device="cpu", compile="off", bf16="off")


@pytest.fixture(scope="module")
def base() -> RunConfig:
    model = ConvVaeConfig(
        image_shape=(1, 8, 8),
        channels=(4,),
        hidden=12,
        latent_dim=4,
        posterior=IafPosterior(steps=2, hidden=(8,)),
    )
    return RunConfig(model=model, optim=OptimConfig(batch_size=8))


@pytest.fixture(scope="module")
def images() -> ImageData:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    return ImageData(pixels, "random", "train")


def built(row: Row, base: RunConfig, images: ImageData) -> Trainer:
    with row.applied():
        return Trainer(row.configure(base), EAGER, images)


def test_rows_that_change_nothing_are_left_out(base: RunConfig):
    names = [row.name for row in rows_for(base)]
    assert names[0] == "base"
    assert {"gated", "free-bits-0"}.isdisjoint(names)
    assert {"diagonal", "affine", "same-order", "no-data-init", "gain-exp"} <= set(names)
    ladder = [row.name for row in rows_for(run_preset("mnist-ladder"))]
    # Its posterior is affine and has one step: no order to reverse.
    assert "gated" in ladder
    assert {"affine", "same-order"}.isdisjoint(ladder)


def test_rows_change_the_configuration(base: RunConfig):
    def posterior(name: str) -> object:
        return BY_NAME[name].configure(base).model.posterior

    assert posterior("diagonal") == DiagonalPosterior()
    assert posterior("affine") == replace(base.model.posterior, update="affine")
    assert posterior("same-order") == replace(base.model.posterior, reverse=False)
    assert BY_NAME["free-bits-1"].configure(base).train.free_bits_nats == 1.0
    assert BY_NAME["no-kl-warmup"].configure(base).train.kl_warmup_epochs == 0.0

    def optim(name: str) -> OptimConfig:
        return BY_NAME[name].configure(base).optim

    assert optim("rate-x3") == replace(base.optim, learning_rate=0.006)
    assert optim("rate-x3-batch-half") == replace(base.optim, learning_rate=0.006, batch_size=4)
    assert optim("adam") == replace(base.optim, kind="adam", learning_rate=0.001)
    assert optim("no-skip") == replace(base.optim, skip_factor=0.0)
    assert BY_NAME["wide"].configure(base).model.channels == (8,)
    assert BY_NAME["wide"].configure(run_preset("mnist-ladder")).model.channels == 64


@pytest.mark.parametrize("name", ["no-weight-norm", "gain-exp"])
def test_another_parametrisation_starts_from_the_same_function(
    name: str, base: RunConfig, images: ImageData
):
    mine, theirs = (built(BY_NAME[n], base, images).model for n in ("base", name))
    x = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    eps = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for a, b in zip(mine(x, eps), theirs(x, eps), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    difference = set(dict(mine.named_parameters())) ^ set(dict(theirs.named_parameters()))
    assert not difference


def test_a_third_of_the_logarithm_starts_elsewhere(base: RunConfig, images: ImageData):
    exp, third = (
        built(BY_NAME[n], base, images).model.encoder.blocks[0].first.g
        for n in ("gain-exp", "gain-exp-third")
    )
    assert torch.allclose(third, exp / 3, rtol=1e-4, atol=1e-5)
    assert exp.abs().max() > 0.1


def test_plain_weights_are_trained_as_they_are_and_stay_masked(base: RunConfig, images: ImageData):
    trainer = built(BY_NAME["no-weight-norm"], base, images)
    layer = trainer.model.flow.steps[0].made.m
    before, gains = layer.v.clone(), layer.g.clone()
    for _ in range(3):
        trainer.train_step()
    assert torch.equal(layer.g, gains)
    assert torch.equal(layer.g, torch.ones_like(gains))
    allowed = layer.mask != 0
    assert not torch.equal(layer.v[allowed], before[allowed])
    assert torch.equal(layer.weight(), layer.v * layer.mask)
    assert not layer.weight()[~allowed].any()


def test_without_data_dependent_initialisation_gains_stay_one(base: RunConfig, images: ImageData):
    off = built(BY_NAME["no-data-init"], base, images).model
    on = built(BY_NAME["base"], base, images).model
    assert torch.equal(off.encoder.hidden.g, torch.ones_like(off.encoder.hidden.g))
    assert not torch.allclose(on.encoder.hidden.g, off.encoder.hidden.g)


def test_nothing_stays_changed_even_after_a_failure():
    before = (
        vars(training.fit.trainer)["build_model"],
        vars(training.fit.trainer)["data_dependent_init"],
    )
    with pytest.raises(KeyError), BY_NAME["no-data-init"].applied():
        raise KeyError
    assert (
        vars(training.fit.trainer)["build_model"],
        vars(training.fit.trainer)["data_dependent_init"],
    ) == before


def test_the_table_is_best_first_and_against_the_base():
    def result(row: str, seed: int, elbo: float) -> dict:
        return {"row": row, "what": row, "seed": seed, "elbo_nats": elbo, "steps": 100}

    text = markdown(
        [result("base", 0, -90.0), result("base", 1, -92.0), result("diagonal", 0, -89.5)]
    )
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:4]]
    assert lines[0][0] == "diagonal"
    assert lines[0][3] == "+1.50"
    assert lines[1] == ["base", "base", "-91.00", "+0.00", "1.41", "2", "100"]
