"""What a step shows: mirrored images are mirrored whole, and half of them, and always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig
from training.config import DataConfig, OptimConfig, RunConfig, Runtime
from training.data import ImageData
from training.fit.batches import Batches, noise, presented, step_generator
from training.fit.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def grey():
    return build_model(
        ConvVaeConfig(
            image_shape=(1, 4, 6),
            channels=(2,),
            hidden=4,
            latent_dim=3,
            likelihood="discretized_logistic",
        )
    )


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (2000, 1, 4, 6), np.uint8))


def shown(model, pixels, step, *, flips):
    return presented(model, pixels, step_generator(CPU, 7, 0, step), flips=flips)


def test_every_image_is_shown_as_it_is_or_mirrored(grey, pixels):
    plain = shown(grey, pixels, 3, flips=False)
    found = shown(grey, pixels, 3, flips=True)
    kept = (found == plain).flatten(1).all(dim=1)
    mirrored = (found == plain.flip(3)).flatten(1).all(dim=1)
    assert (kept | mirrored).all()
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert torch.equal(found, shown(grey, pixels, 3, flips=True))
    assert not torch.equal(found, shown(grey, pixels, 4, flips=True))


def test_mirrored_digits_are_binarised_as_mirrored():
    """p of the mirrored place: grey values stay probabilities."""
    model = build_model(ConvVaeConfig(image_shape=(1, 4, 4), channels=(2,), hidden=4, latent_dim=3))
    half = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    half[..., :2] = 255
    found = shown(model, half, 0, flips=True)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    left, right = found[..., :2].flatten(1), found[..., 2:].flatten(1)
    assert torch.equal(left, 1 - right)  # whole images, each to one side
    assert abs(left.mean().item() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_noise_depends_on_a_rows_place_in_the_whole_batch_alone(grey):
    whole = noise(grey, 8, step_generator(CPU, 1, 0, 5))
    again = noise(grey, 8, step_generator(CPU, 1, 0, 5))
    assert whole.shape == (8, 3)
    assert torch.equal(whole, again)
    assert len(whole.unique()) == 24


@pytest.mark.parametrize("flips", [False, True])
def test_a_training_mirrors_where_it_is_told_to(grey, flips):
    half = np.zeros((32, 1, 4, 6), np.uint8)
    half[..., :3] = 255
    config = RunConfig(
        model=grey.config,
        optim=OptimConfig(batch_size=32, warmup_steps=0),
        data=DataConfig(name="halves", horizontal_flips=flips),
    )
    runtime = Runtime(device="cpu", compile="off", bf16="off", threads=1)
    run = Trainer(config, runtime, ImageData(half, "halves", "train"))
    forward, seen = run.forward, []
    run.forward = lambda x, eps: seen.append(x) or forward(x, eps)
    run.train_step()
    mirrored = seen[0][:, 0, 0, 0] == 0
    assert mirrored.any() == flips
    assert not mirrored.all()


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    """But for what fills no whole batch."""
    pixels = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1)

    def epoch(batches, number):
        steps = range(4 * number, 4 * number + 4)
        return torch.cat([batches.at(step) for step in steps]).flatten().tolist()

    batches = Batches(pixels, 5, seed=3)
    epochs = [epoch(batches, number) for number in (0, 1, 2)]
    assert [len(set(shown)) for shown in epochs] == [20, 20, 20]
    assert len(set(map(tuple, epochs))) == 3
    assert epoch(batches, 1) == epochs[1]
    assert epoch(Batches(pixels, 5, seed=4), 0) != epochs[0]
