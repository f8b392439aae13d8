"""Training the posterior alone: what is p(x) stays to the bit, and the bound on it rises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig, CouplingPrior, IafPosterior, ResnetVaeConfig
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.fit.trainer import Trainer, density_parameters
from training.runs.checkpoint import load_checkpoint

EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)
FLAT = ConvVaeConfig(
    image_shape=(1, 8, 8),
    channels=(4,),
    hidden=16,
    latent_dim=4,
    posterior=IafPosterior(steps=1, hidden=(8,)),
    prior=CouplingPrior(couplings=2, hidden=(8, 8)),
)
LADDER = ResnetVaeConfig(image_shape=(1, 8, 8), levels=(2,), channels=4, z_channels=2)
CONFIG = RunConfig(
    model=FLAT,
    optim=OptimConfig(batch_size=16, learning_rate=0.01, warmup_steps=0),
    train=TrainConfig(epochs=100, kl_warmup_epochs=0),
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    bars = np.zeros((64, 1, 8, 8), np.uint8)
    for image in bars:
        image[0, :, rng.integers(0, 8)] = 255
    return ImageData(bars, "bars", "train")


@pytest.mark.parametrize("config", [FLAT, LADDER], ids=["flat", "ladder"])
def test_a_draw_depends_on_the_density_alone(config):
    """And on all of it."""
    torch.manual_seed(0)
    model = build_model(config)
    density = set(map(id, density_parameters(model)))
    eps = torch.randn(4, model.layout.dim)
    heats = torch.ones(4, len(model.layout.groups))
    before = model.generate(eps, heats)
    for parameter in model.parameters():
        if id(parameter) not in density:
            parameter.data += 1.0
    assert torch.equal(model.generate(eps, heats), before)
    assert {name.split(".")[0] for name, p in model.named_parameters() if id(p) in density} == (
        {"prior", "decoder"} if config is FLAT else {"top", "down", "head"}
    )


@pytest.mark.parametrize("config", [FLAT, LADDER], ids=["flat", "ladder"])
def test_the_density_stays_and_the_bound_rises(config, data, tmp_path):
    whole = Trainer(replace(CONFIG, model=config), EAGER, data)
    for _ in range(30):
        whole.train_step()
    whole.save(tmp_path)
    part = replace(CONFIG.train, part="posterior")
    trainer = Trainer(replace(CONFIG, model=config, train=part), EAGER, data)
    trainer.restore(load_checkpoint(tmp_path))
    before = {name: p.clone() for name, p in trainer.average.named_parameters()}
    bound = trainer.validate(data)["elbo_nats"]
    for _ in range(60):
        trainer.train_step()
    assert trainer.validate(data)["elbo_nats"] > bound + 0.2
    kept = set(map(id, density_parameters(trainer.model)))
    names = {name for name, p in trainer.model.named_parameters() if id(p) in kept}
    for model in (trainer.model, trainer.average):  # the averaged density is the one that stays
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (name in names), name
    trainer.save(tmp_path)
    again = Trainer(replace(CONFIG, model=config), EAGER, data)
    again.restore(load_checkpoint(tmp_path))
    again.train_step()
    assert not torch.equal(
        dict(again.model.named_parameters())[min(names)], before[min(names)]
    )  # all of it goes on
