"""What a recipe may have: a rate by the minutes, clipping, a prior's own rate, tighter bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import ConvVaeConfig, CouplingPrior, DiagonalPosterior
from model.objective import ElboTerms
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.fit.batches import STREAM_TRAIN, noise, presented, step_generator
from training.fit.progress import Observer
from training.fit.trainer import Trainer
from training.schedules import learning_rate_at

CONFIG = RunConfig(
    model=ConvVaeConfig(
        image_shape=(1, 8, 8),
        channels=(4,),
        hidden=12,
        latent_dim=4,
        posterior=DiagonalPosterior(),
        prior=CouplingPrior(couplings=2, hidden=(8, 8)),
    ),
    optim=OptimConfig(batch_size=8, warmup_steps=0),
    train=TrainConfig(epochs=3, kl_warmup_epochs=1.0),
)
EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)
IMAGES = ImageData(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8), "n", "train")


def trainer(**optim: object) -> Trainer:
    return Trainer(replace(CONFIG, optim=replace(CONFIG.optim, **optim)), EAGER, IMAGES)


def changes(run: Trainer) -> dict[str, torch.Tensor]:
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.train_step()
    return {n: p.detach() - before[n] for n, p in run.model.named_parameters()}


def test_a_budgets_rate_falls_with_its_minutes() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, schedule="budget", decay_fraction=0.4)
    total = 10**7
    assert learning_rate_at(config, 4, total) == pytest.approx(0.5)
    rates = [learning_rate_at(config, 50, total, spent) for spent in (0, 0.6, 0.8, 0.9, 1)]
    assert rates == pytest.approx([1, 1, 0.5, 0.25, 0])
    never = replace(config, decay_fraction=0)
    assert learning_rate_at(never, 50, total, 0.99) == 1


def test_the_loop_takes_the_share_that_is_spent() -> None:
    run = trainer(schedule="budget", decay_fraction=0.5, learning_rate=0.01)
    shares = iter([0.0, 0.5, 0.75, 0.9, 1.0])
    rates = []
    step = run.optimizer.step
    run.optimizer.step = lambda: rates.append(run.optimizer.param_groups[0]["lr"]) or step()
    next(run.run(Observer(), lambda: "", IMAGES, lambda: next(shares)))
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.002, 0.0])


@pytest.mark.parametrize("kind", ["adamax", "adam"])
def test_a_prior_learns_at_its_own_rate(kind: str) -> None:
    """A first step of either optimiser is as long as its rate, whatever the gradient."""
    moved = changes(trainer(kind=kind, learning_rate=0.01, prior_rate=0.3))
    of = {
        prior: max(
            float(d.abs().max()) for n, d in moved.items() if n.startswith("prior.") == prior
        )
        for prior in (True, False)
    }
    assert of[True] == pytest.approx(0.003, rel=1e-3)
    assert of[False] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind", ["adamax", "adam"])
def test_weights_decay_each_kind_at_its_own_rate(kind: str) -> None:
    """The first mean gradient is a tenth of the gradient and the pull towards zero."""
    run = trainer(kind=kind, weight_decay=0.5, prior_weight_decay=0.25)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train_step()
    for name, parameter in run.model.named_parameters():
        pull = (0.25 if name.startswith("prior.") else 0.5) * before[name]
        mean = run.optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(10 * mean, parameter.grad + pull, rtol=1e-4, atol=1e-5)


def test_gradients_are_cut_to_the_norm_but_reported_as_they_were() -> None:
    plain, cut = trainer(), trainer(clip_norm=0.5)
    norms = [run.train_step().norm for run in (plain, cut)]
    assert norms[0] == norms[1] > 0.5
    gradients = [[p.grad for p in run.model.parameters()] for run in (plain, cut)]
    assert float(torch.nn.utils.get_total_norm(gradients[1])) == pytest.approx(0.5)
    for whole, short in zip(*gradients, strict=True):
        torch.testing.assert_close(short, whole * (0.5 / norms[0]))
    loose = trainer(clip_norm=1e6)
    loose.train_step()
    for whole, same in zip(gradients[0], (p.grad for p in loose.model.parameters()), strict=True):
        assert torch.equal(whole, same)


def test_the_importance_weighted_step_is_the_bounds_gradient() -> None:
    """-log mean_k w_k, each draw on its own, against the gradients of one step, also in parts."""
    config = replace(CONFIG, train=replace(CONFIG.train, importance_samples=3))
    run = Trainer(config, EAGER, IMAGES)
    generator = step_generator(torch.device("cpu"), config.train.seed, STREAM_TRAIN, 0)
    x = presented(run.model, run.batches.at(0), generator)
    eps = noise(run.model, 3 * len(x), generator).view(3, len(x), -1)
    weights = torch.stack([ElboTerms(*run.model(x, draw)).elbo.double() for draw in eps])
    bound = (weights.exp().sum(0) / 3).log()
    (-bound.mean()).backward()
    bound, weights = bound.detach(), weights.detach()
    wanted = {n: p.grad.clone() for n, p in run.model.named_parameters()}
    step = run.train_step()
    assert step.loss == pytest.approx(-float(bound.mean()), rel=1e-5)
    assert step.elbo_nats == pytest.approx(float(weights.mean()), rel=1e-5)
    assert math.isfinite(step.kl_nats)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)
    halved = Trainer(replace(config, optim=replace(config.optim, accumulate=2)), EAGER, IMAGES)
    halved.train_step()
    for name, parameter in halved.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)
