"""What a step shows: images mirrored or distorted whole, as many as said, and always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig
from training.config import DataConfig, OptimConfig, RunConfig, Runtime
from training.data import ImageData
from training.fit import batches as batches_module
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


def shown(model, pixels, step, **changes):
    return presented(model, pixels, step_generator(CPU, 7, 0, step), **changes)


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


def test_a_share_of_the_images_is_distorted(grey, pixels):
    plain = shown(grey, pixels, 3)
    found = shown(grey, pixels, 3, distorted=0.3)
    changed = (found != plain).flatten(1).any(dim=1)
    assert abs(changed.float().mean().item() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert torch.equal(found, shown(grey, pixels, 3, distorted=0.3))
    assert not torch.equal(found, shown(grey, pixels, 4, distorted=0.3))


def moments(images):
    """Of bright shapes `[N, H, W]`: area, centre `[2, N]`, covariance `[N, 2, 2]` of (x, y)."""
    height, width = images.shape[1:]
    y, x = np.mgrid[:height, :width] + 0.5
    area = images.sum((1, 2))
    places = np.stack([(images * axis).sum((1, 2)) / area for axis in (x, y)])
    away = [axis - place[:, None, None] for axis, place in zip((x, y), places, strict=True)]
    spread = [[(images * a * b).sum((1, 2)) / area for a in away] for b in away]
    return area, places, np.moveaxis(np.array(spread), 2, 0)


@pytest.mark.parametrize("part", range(4), ids=["turned", "wider", "higher", "slanted"])
def test_distortions_are_those_of_the_shape_that_is_seen(monkeypatch, part):
    """Also where images are not square: by the moments of a bar, which is not drawn by torch."""
    most = batches_module.DISTORTIONS[part]
    alone = tuple(most * (k == part) for k in range(4))
    monkeypatch.setattr(batches_module, "DISTORTIONS", alone)
    bar = torch.zeros(400, 1, 40, 64, dtype=torch.uint8)
    bar[:, :, 17:23, 22:42] = 200
    before = moments(bar[:1, 0].double().numpy())
    found = batches_module._distorted(bar, 1.0, 1.0, step_generator(CPU, 0, 0, 1))
    area, places, spread = moments(found[:, 0].double().numpy())
    assert np.abs(places - before[1]).max() < 0.1  # pixels
    angle = 0.5 * np.arctan2(2 * spread[:, 0, 1], spread[:, 0, 0] - spread[:, 1, 1])
    sides = np.sqrt(spread[:, [0, 1], [0, 1]] / before[2][0, [0, 1], [0, 1]])
    within = {"rtol": 0.03, "atol": 0.02}
    if part == 0:
        np.testing.assert_allclose([angle.min(), angle.max()], [-most, most], **within)
        np.testing.assert_allclose(area / before[0], 1, **within)
    elif part == 3:
        np.testing.assert_allclose(area / before[0], 1, **within)
        assert 0.01 < np.abs(angle).max() < most
    else:
        range_ = [1 / (1 + most), 1 / (1 - most)]
        stretched, other = sides[:, part - 1], sides[:, 2 - part]
        np.testing.assert_allclose([stretched.min(), stretched.max()], range_, **within)
        np.testing.assert_allclose(other, 1, **within)


def test_distorted_strokes_of_a_binary_model_stay_as_certain(monkeypatch):
    """Edges become grey where they are interpolated, and each grey pixel is drawn."""
    model = build_model(ConvVaeConfig(image_shape=(1, 28, 28), channels=(2,), hidden=4))
    drawn = []
    monkeypatch.setattr(batches_module, "binarised", lambda x, u: drawn.append(x) or x.float())
    y, x = np.mgrid[:28, :28] + 0.5
    radii = np.linspace(4, 8, 200)[:, None, None]
    rings = (255 * (1.9 - np.abs(np.hypot(x - 14, y - 14) - radii))).clip(0, 255)
    plain = torch.from_numpy(rings.astype(np.uint8))[:, None]
    shown(model, plain, 0, distorted=1.0)

    def entropy(pixels):
        p = pixels.double() / 255
        return torch.special.entr(torch.stack([p, 1 - p])).sum() / len(p)

    assert entropy(drawn[0]) / entropy(plain) == pytest.approx(1.05, abs=0.1)
    assert drawn[0].double().mean() / plain.double().mean() == pytest.approx(1, abs=0.02)
    turn, *others = batches_module.DISTORTIONS
    assert turn < np.radians(10)  # a little, as `--help` says
    assert max(others) < 0.15


def test_noise_depends_on_a_rows_place_in_the_whole_batch_alone(grey):
    whole = noise(grey, 8, step_generator(CPU, 1, 0, 5))
    again = noise(grey, 8, step_generator(CPU, 1, 0, 5))
    assert whole.shape == (8, 3)
    assert torch.equal(whole, again)
    assert len(whole.unique()) == 24


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("distorted", [0.0, 1.0])
def test_a_training_shows_images_as_it_is_told_to(grey, flips, distorted):
    half = np.zeros((32, 1, 4, 6), np.uint8)
    half[..., :3] = 255
    config = RunConfig(
        model=grey.config,
        optim=OptimConfig(batch_size=32, warmup_steps=0),
        data=DataConfig(name="halves", horizontal_flips=flips, distorted=distorted),
    )
    runtime = Runtime(device="cpu", compile="off", bf16="off", threads=1)
    run = Trainer(config, runtime, ImageData(half, "halves", "train"))
    forward, seen = run.forward, []
    run.forward = lambda x, eps: seen.append(x) or forward(x, eps)
    run.train_step()
    assert (len(seen[0][:, 0, 0].unique()) > 2) == bool(distorted)
    mirrored = seen[0][:, 0, 0, 0] < seen[0][:, 0, 0, 5]
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
