"""How rows of several works become one batch."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from service import noise as noise_module
from service.engine.cuda_engine import CudaEngine
from service.noise import Normal, Purpose, image_keys, normal, uniform
from service.operations import model as model_module
from service.scheduler import batching
from service.scheduler.batching import batchers
from service.scheduler.work import (
    DecodeWork,
    EncodeWork,
    EvidenceWork,
    SampleWork,
    ScoreWork,
    first_images,
    image_noise,
    positions,
)

D = 3
LATENTS = np.zeros((2, D), dtype=np.float32)


def places(n, first=0):
    return np.arange(n, dtype=np.uint64) + np.uint64(first)


def test_batches_hold_each_image_once(loaded, tiny_model):
    """A score batch of ragged pieces: images of a piece ride once, owners point at them."""

    images = tiny_model.images(6)
    keys = image_keys(images)
    first = ScoreWork(images=images[:4], seed=1, samples=5)
    second = ScoreWork(images=images[4:], seed=2, samples=3)
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


@pytest.mark.parametrize("cuts", [(), (1,), (5,), (10,), (3, 4, 11), (5, 10), tuple(range(1, 15))])
def test_evidence_comes_once_with_an_images_first_sample(loaded, tiny_model, cuts):
    """However its rows are cut: parts joined in order have each image's evidence at its place."""
    images = tiny_model.images(3)
    batcher = batchers(loaded.bundle.manifest)["evidence"]
    work = EvidenceWork(images=images, seed=1, samples=5)
    whole = tiny_model.at_zero(images)
    ends = [0, *cuts, 15]
    other = EvidenceWork(images=tiny_model.images(2, seed=9), seed=2, samples=1)
    parts = []
    for start, stop in itertools.pairwise(ends):
        pieces = [(other, 0, 1), (work, start, stop), (other, 1, 2)]
        assert batcher.graph("evidence", pieces) == "evidence"
        begins = any(row in (0, 5, 10) for row in range(start, stop))
        assert batcher.graph("evidence", pieces[1:2]) == ("evidence" if begins else "score")
        arrays = batcher.assemble(pieces)
        outputs = tiny_model.at_zero(arrays["image"], arrays["u_image"])
        rows = len(arrays["owner"])
        outputs |= {"log_weight": np.arange(float(rows)), "kl": np.zeros((rows, 1))}
        before, part, after = batcher.split(pieces, outputs)
        assert len(part["log_weight"]) == stop - start
        assert len(before["statistics"]) == len(after["statistics"]) == 1
        parts.append(part)
    for name in ("residual", "statistics"):
        assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("operation", ["encode", "score", "evidence"])
def test_grey_pixels_are_drawn_alike_in_any_company(loaded, operation):
    """The noise is the seed's and the image's, wherever it stands and however it is split."""
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), np.uint8)
    images[1] = 255 * (images[1] > 127)  # black and white: it takes none, and changes no other's
    batcher = batchers(loaded.bundle.manifest)[operation]

    def work(part, seed):
        if operation == "encode":
            return EncodeWork(images=part, seed=seed)
        kind = ScoreWork if operation == "score" else EvidenceWork
        return kind(images=part, seed=seed, samples=2)

    each = 1 if operation == "encode" else 2
    crowd = [(work(images[:3], 7), each, 3 * each), (work(images[2:], 9), 0, 3 * each)]
    got = batcher.assemble(crowd)["u_image"]
    expected = [
        uniform(seed, image_keys(images[a:b]), 0, 16, Purpose.PIXELS)
        for seed, a, b in ((7, 1, 3), (9, 2, 5))
    ]
    expected[0][0] = 0
    assert np.array_equal(got, np.concatenate(expected))
    other = uniform(7, image_keys(images), 0, 16, Purpose.IMAGE)
    assert not np.array_equal(got[:2], other[1:3])  # the noise that draws an image's pixels


def test_means_alone_need_no_uniform_noise(loaded, monkeypatch):
    """Uniforms are many (U an image); rows that want the mean alone do without."""

    monkeypatch.setattr(batching, "uniform", lambda *arguments, **options: 1 / 0)
    keys = first_images(places(2))
    work = DecodeWork(z=LATENTS, keys=keys, output="mean")
    arrays = batchers(loaded.bundle.manifest)["decode"].assemble([(work, 0, 2)])
    assert not arrays["u"].any()
    drawn = DecodeWork(z=LATENTS, keys=keys, output="draw")
    with pytest.raises(ZeroDivisionError):
        batchers(loaded.bundle.manifest)["decode"].assemble([(drawn, 0, 2)])


@pytest.mark.parametrize("operation", ["sample", "decode"])
def test_means_and_draws_of_one_batch_are_told_apart(loaded, operation):
    """Each work has what it asked for; a mean that is no number is black, and said to be none."""
    keys, heats = first_images(places(2)), np.ones((2, 1), np.float32)
    works = [
        SampleWork(keys=keys, temperature=heats, output=output)
        if operation == "sample"
        else DecodeWork(z=LATENTS, keys=keys, output=output)
        for output in ("mean", "draw", "both")
    ]
    mean = np.linspace(0, 1, 96, dtype=np.float32).reshape(6, 1, 4, 4)
    mean[1, 0, 2, 3] = mean[3, 0, 0, 0] = np.nan
    mean[1, 0, 1, 1], mean[5, 0, 1, 1] = -np.inf, np.inf
    draw = np.full((6, 1, 4, 4), 7, np.uint8)
    pieces = [(work, 0, 2) for work in works]
    shown = np.rint(255 * np.where(np.isfinite(mean), mean, 0))
    split = batchers(loaded.bundle.manifest)[operation].split
    means, draws, both = split(pieces, {"mean": mean, "draw": draw})
    assert np.array_equal(means["images"], shown[:2])
    assert means["finite"].tolist() == [True, False]
    assert np.array_equal(draws["images"], draw[2:4])
    assert draws["finite"].tolist() == [True, False]
    assert np.array_equal(both["images"], shown[4:])
    assert np.array_equal(both["draw"], draw[4:])
    assert np.array_equal(both["mean"], mean[4:])
    (alone,) = split(pieces[1:2], {"mean": mean[2:4], "draw": draw[2:4]})
    assert np.array_equal(alone["images"], draws["images"])
    assert alone["finite"].tolist() == draws["finite"].tolist()


def test_single_samples_under_different_seeds_keep_their_own_noise(loaded, tiny_model):
    """K = 1 requests of several seeds in one batch: each row's noise is its own seed's."""
    images = tiny_model.images(5)
    works = [
        (ScoreWork(images=images[a : a + n], seed=seed, samples=1), 0, n)
        for a, n, seed in ((0, 2, 7), (2, 1, 8), (3, 2, 0))
    ]
    eps = batchers(loaded.bundle.manifest)["score"].assemble(works)["eps"]
    keys = image_keys(images)
    for row, seed in enumerate((7, 7, 8, 0, 0)):
        expected = normal(seed, keys[row : row + 1], 0, D, Purpose.IMAGE)
        assert np.array_equal(eps[row : row + 1], expected)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_several_threads_make_the_same_noise(monkeypatch, rows):
    monkeypatch.setattr(noise_module, "SHARED_NUMBERS", 1)
    fill, seen = noise_module._fill, []

    def noted(noise, *given):
        seen.append((threading.current_thread().name, len(noise)))
        fill(noise, *given)

    keys, draws = places(rows, 5), np.arange(rows)
    wanted = normal(3, keys, draws, 11, Purpose.IMAGE)
    monkeypatch.setattr(noise_module, "_fill", noted)
    got = Normal(3)(3, keys, draws, 11, Purpose.IMAGE)
    assert got.tobytes() == wanted.tobytes()
    assert len(seen) == min(rows, 3)
    assert sum(made for _, made in seen) == rows
    assert all(name.startswith("noise") for name, _ in seen)


def test_all_cores_make_noise_for_a_gpu(loaded, monkeypatch):
    """On a CPU each core has a batch of its own."""
    asked = []

    def noted(manifest, threads):
        asked.append(threads)
        return batchers(manifest, threads)

    monkeypatch.setattr(model_module, "batchers", noted)
    rehearsed = CudaEngine(loaded.bundle, memory="cpu", max_rows=8)
    for engine in (rehearsed, loaded.engine):
        monkeypatch.setattr(model_module, "make_engine", lambda *_, engine=engine: engine)
        model_module.Model.load(loaded.bundle.path, workers=4)
    assert asked == [4, 1]


def test_a_piece_asks_for_its_rows_where_it_is_assembled(loaded):
    """They may be noise that is made then: cutting a stream into pieces makes none of it."""
    asked = []

    def recorded(start, stop):
        asked.append((start, stop))
        return np.arange(30, dtype=np.float32).reshape(10, D)[start:stop]

    heats = np.ones((10, 1), np.float32)
    work = SampleWork(keys=positions(0), temperature=heats, output="mean", eps=recorded)
    piece = work.piece(2, 8).piece(1, 5)
    assert (piece.rows, asked) == (4, [])
    eps = batchers(loaded.bundle.manifest)["sample"].assemble([(piece, 1, 3)])["eps"]
    assert asked == [(4, 6)]
    assert eps[:, 0].tolist() == [12.0, 15.0]


def test_noise_of_images_is_theirs_wherever_they_stand(tiny_model):
    images = tiny_model.images(5)
    noise = image_noise(7, images)
    seeds, streams, purposes = noise(1, 4)
    assert np.array_equal(streams, image_keys(images)[1:4])
    assert seeds.tolist() == [7] * 3
    assert purposes.tolist() == [Purpose.IMAGE] * 3


def test_reconstructed_means_need_no_noise(perform, tiny_model, monkeypatch):
    monkeypatch.setattr("service.scheduler.work.image_keys", lambda images: 1 / 0)
    images = tiny_model.images(2)
    assert perform(lambda model: model.reconstruct(images, output="mean")).seed is None
