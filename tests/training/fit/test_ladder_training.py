"""A ladder learns: every parameter gets a finite gradient, and real images cost ever fewer bits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ResnetVaeConfig
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig, run_preset
from training.data import ImageData, load_dataset
from training.fit.trainer import Trainer

EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)
TINY = ResnetVaeConfig(image_shape=(3, 8, 8), channels=8, z_channels=2, levels=(2, 1))


def smooth_images(count, shape=(3, 8, 8)):
    """Images of two colours each, one half beside the other."""
    rng = np.random.default_rng(0)
    channels, height, width = shape
    ends = rng.integers(0, 256, (count, channels, 1, 2), np.uint8)
    return ImageData(ends.repeat(height, 2).repeat(width // 2, 3), "halves", "train")


def config_of(model, epochs=40):
    return RunConfig(
        model=model,
        optim=OptimConfig(batch_size=16, schedule="constant"),
        train=TrainConfig(epochs=epochs, free_bits_nats=0.1, kl_warmup_epochs=0.0),
    )


@pytest.mark.parametrize("inference", ["bidirectional", "bottom_up"])
def test_every_parameter_of_a_ladder_gets_a_finite_gradient(inference):
    trainer = Trainer(config_of(replace(TINY, inference=inference)), EAGER, smooth_images(64))
    trainer.train_step()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_ladder_learns_and_reports_each_layers_nats():
    data = smooth_images(64)
    trainer = Trainer(config_of(TINY), EAGER, data)
    before = trainer.validate(data)
    for _ in range(60):
        trainer.train_step()
    trainer.ema.update(0)  # a decay of a tenth: the average is nearly the model
    after = trainer.validate(data)
    assert after["elbo_nats"] > before["elbo_nats"] + 40
    groups = [after[f"kl_nats/{group}"] for group in trainer.model.kl_groups]
    assert len(groups) == 3
    assert sum(groups) == pytest.approx(after["kl_nats"])


def pixel_entropy_bits(pixels):
    """Bits a subpixel of a model of independent pixels that knows each one's distribution."""
    flat = pixels.reshape(len(pixels), -1)
    counts = np.stack([np.bincount(column, minlength=256) for column in flat.T])
    shares = counts / len(flat)
    return float(-(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1).mean())


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_few_hundred_steps_on_cifar10_fall_well_below_independent_pixels():
    root = os.environ.get("IAFVAE_DATA_DIR")
    if root is None or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("IAFVAE_DATA_DIR is not set, or has no cifar-10-batches-py")
    train, validation = (
        load_dataset("cifar10", split, Path(root), download=False)
        for split in ("train", "validation")
    )
    config = run_preset("cifar10-small")
    config = replace(
        config,
        optim=replace(config.optim, batch_size=16, warmup_steps=50, ema_decay=0.98),
        train=replace(config.train, epochs=1),
    )
    trainer = Trainer(config, Runtime(device="cpu", compile="off", threads=1), train)
    for _ in range(400):
        assert trainer.train_step().taken
        assert all(torch.isfinite(p.grad).all() for p in trainer.model.parameters())
    bits = trainer.validate(validation.first(500))["bits_per_dim"]
    assert bits < pixel_entropy_bits(train.pixels) - 0.5
