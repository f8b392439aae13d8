"""The KL's weight at every step of a training is the scheduled one, and no other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import ConvVaeConfig
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.fit.trainer import Trainer

STEPS_PER_EPOCH, WARMUP_EPOCHS, START = 4, 1.5, 0.25
CONFIG = RunConfig(
    model=ConvVaeConfig(image_shape=(1, 8, 8), channels=(4,), hidden=8, latent_dim=3),
    optim=OptimConfig(batch_size=8, warmup_steps=0, skip_factor=0.0),
    train=TrainConfig(
        epochs=3, seed=1, kl_warmup_epochs=WARMUP_EPOCHS, kl_warmup_start=START, free_bits_nats=0.0
    ),
)
EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)


def trainer(config: RunConfig = CONFIG) -> Trainer:
    blobs = np.random.default_rng(0).integers(0, 256, (32, 1, 2, 2), np.uint8)
    pixels = blobs.repeat(4, axis=2).repeat(4, axis=3)
    return Trainer(config, EAGER, ImageData(pixels, "blobs", "train"))


def expected_weight(step: int) -> float:
    """Linear from START at step 0 to 1 at the end of the warm-up, written down once more."""
    return min(1.0, START + (1 - START) * step / (WARMUP_EPOCHS * STEPS_PER_EPOCH))


def test_the_loss_of_a_step_has_the_kl_at_its_scheduled_weight() -> None:
    """loss = -E[log p(x|z)] + weight KL, from the step's own ELBO = E[log p(x|z)] - KL."""
    run = trainer()
    weights = []
    for number in range(2 * STEPS_PER_EPOCH):
        step = run.train_step()
        weights.append((step.loss + step.elbo_nats + step.kl_nats) / step.kl_nats)
        assert step.kl_nats > 0.1, "a KL near zero would hide its weight"
        assert weights[-1] == pytest.approx(expected_weight(number), rel=1e-3), number
    assert weights[0] == pytest.approx(START, rel=1e-3)
    assert weights[-1] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("number", [0, 3, 7])
def test_the_gradient_of_a_step_has_the_kl_at_its_scheduled_weight(number: int) -> None:
    """The gradient is that of the weighted sum, computed here from the model's own terms."""
    run, twin = trainer(), trainer()
    for _ in range(number):
        run.train_step()
        twin.train_step()
    seen = {}

    def recorded(x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.update(x=x, eps=eps)
        found: tuple[torch.Tensor, ...] = forward(x, eps)
        return found

    forward, run.forward = run.forward, recorded
    step = run.train_step()
    log_px_z, kl = twin.model(seen["x"], seen["eps"])
    twin.model.zero_grad()
    loss = -log_px_z.mean() + expected_weight(number) * kl.sum(dim=1).mean()
    loss.backward()
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, own), other in zip(
        run.model.named_parameters(), twin.model.parameters(), strict=True
    ):
        assert torch.allclose(own.grad, other.grad, rtol=1e-4, atol=1e-5), name
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.model.parameters()))
    assert step.norm == pytest.approx(norm, rel=1e-4)


def test_the_loss_of_a_step_has_the_free_bits_that_were_asked_for() -> None:
    """A KL below the minimum costs the minimum, and what is reported is the KL itself."""
    minimum = 40.0
    train = replace(CONFIG.train, kl_warmup_epochs=0.0, free_bits_nats=minimum)
    run = trainer(replace(CONFIG, train=train))
    step = run.train_step()
    assert 0.1 < step.kl_nats < minimum
    assert step.loss == pytest.approx(minimum - step.elbo_nats - step.kl_nats, rel=1e-4)
