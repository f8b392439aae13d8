"""How rows of several works become one batch."""

from __future__ import annotations

import numpy as np
import pytest

from service.noise import Purpose, image_keys, normal
from service.scheduler import batching
from service.scheduler.batching import batchers
from service.scheduler.work import DecodeWork, NoiseKeys, ScoreWork

D = 3
LATENTS = np.zeros((2, D), dtype=np.float32)


def places(n, first=0):
    return np.arange(n, dtype=np.uint64) + np.uint64(first)


def test_batches_hold_each_image_once(loaded, tiny_model):
    """A score batch of ragged pieces: images of a piece ride once, owners point at them."""

    images = tiny_model.images(6)
    keys = image_keys(images)
    first = ScoreWork(images[:4], keys[:4], seed=1, samples=5)
    second = ScoreWork(images[4:], keys[4:], seed=2, samples=3)
    batcher = batchers(loaded.bundle.manifest)["score"]
    pieces = [(first, 7, 18), (second, 0, 4)]
    arrays = batcher.assemble(pieces)
    assert np.array_equal(arrays["image"], np.concatenate((images[1:4], images[4:6])))
    assert arrays["owner"].tolist() == [0] * 3 + [1] * 5 + [2] * 3 + [3] * 3 + [4]
    expected = normal(1, keys[[1, 1, 1]], np.array([2, 3, 4]), D, Purpose.IMAGE)
    assert np.array_equal(arrays["eps"][:3], expected)
    outputs = {"log_weight": np.arange(15.0), "kl": np.zeros((15, 1)), "log_px_z": np.arange(15.0)}
    parts = batcher.split(pieces, outputs)
    assert [len(part["log_weight"]) for part in parts] == [11, 4]


def test_means_alone_need_no_uniform_noise(loaded, monkeypatch):
    """Uniforms are many (U an image); rows that want the mean alone do without."""

    monkeypatch.setattr(batching, "uniform", lambda *arguments, **options: 1 / 0)
    keys = NoiseKeys(places(2), places(2), Purpose.SAMPLE)
    work = DecodeWork(LATENTS, keys, "mean")
    arrays = batchers(loaded.bundle.manifest)["decode"].assemble([(work, 0, 2)])
    assert not arrays["u"].any()
    drawn = DecodeWork(LATENTS, keys, "draw")
    with pytest.raises(ZeroDivisionError):
        batchers(loaded.bundle.manifest)["decode"].assemble([(drawn, 0, 2)])
