"""Operations against the tiny model in NumPy fed with the same noise, and against themselves in a
crowd.
"""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from service.batching import batchers
from service.engine import Engine
from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    NonFiniteInput,
    ShuttingDown,
    WrongDtype,
    WrongShape,
)
from service.noise import Purpose, image_keys, normal, uniform
from service.operations import Call, ModelRuntime

D, PIXELS = 3, 16


@pytest.fixture(scope="module")
def loaded(tiny_bundle):
    return ModelRuntime.load(tiny_bundle, provider="cpu", workers=2)


@pytest.fixture(scope="module")
def perform(loaded, tiny_bundle):
    """Run an `async def` of a started runtime. Sessions are shared, schedulers are not."""

    def run(use, **limits):
        async def main():
            runtime = ModelRuntime.load(tiny_bundle, provider="cpu", **limits) if limits else None
            fresh = runtime or ModelRuntime(loaded.bundle, loaded.engine, _scheduler(loaded))
            await fresh.start()
            try:
                return await use(fresh)
            finally:
                await fresh.stop(1.0)

        return asyncio.run(asyncio.wait_for(main(), 30))

    return run


def _scheduler(loaded):
    from service.scheduler import Scheduler

    return Scheduler(
        loaded.engine,
        batchers(loaded.bundle.manifest),
        max_batch_rows=16,
        max_queue_rows=10_000,
        workers=2,
    )


def score(runtime, images, k=16, seed=0, alpha=0.01, **options):
    return runtime.score(images, importance_samples=k, seed=seed, alpha=alpha, **options)


def places(n, first=0):
    return np.arange(n, dtype=np.uint64) + np.uint64(first)


def test_sample_is_the_model_at_the_noise_of_its_seed(perform, tiny_model):
    async def use(runtime):
        mean = await runtime.sample(5, seed=7, temperature=[0.8])
        draw = await runtime.sample(5, seed=7, temperature=[0.8], output="draw")
        return mean.images, draw.images

    mean, draw = perform(use)
    eps, u = normal(7, places(5), 0, D), uniform(7, places(5), 0, PIXELS)
    expected = tiny_model.sample(eps, np.full((5, 1), 0.8), u)
    assert mean.dtype == draw.dtype == np.uint8
    assert np.abs(mean - np.rint(255.0 * expected["mean"])).max() <= 1
    assert np.array_equal(draw, expected["draw"])


def test_temperature_zero_is_the_prior_mean(perform, tiny_model):
    got = perform(lambda runtime: runtime.sample(3, seed=1, temperature=[0.0])).images
    z = np.broadcast_to(tiny_model.prior_mean, (3, D))
    expected = tiny_model.decode(z, np.zeros((3, PIXELS)))["mean"]
    assert np.abs(got - 255.0 * expected).max() <= 1.0


def test_sampling_in_pieces_and_by_each_seed(perform):
    async def use(runtime):
        whole = await runtime.sample(40, seed=3, temperature=[1.0], output="draw")
        piece = await runtime.sample(7, seed=3, temperature=[1.0], output="draw", first=21)
        warmth = np.ones((2, 1), dtype=np.float32)
        each = await runtime.sample_each([3, 2**64 - 1], temperature=warmth)
        mean = await runtime.sample(1, seed=3, temperature=[1.0])
        return whole.images, piece.images, each, mean.images

    whole, piece, each, mean = perform(use)
    assert np.array_equal(whole[21:28], piece)
    assert np.array_equal(each.draw[0], whole[0])
    assert np.array_equal(each.images[0], mean[0])
    assert np.array_equal(np.rint(each.mean * 255).astype(np.uint8), each.images)


def test_decode(perform, tiny_model):
    z = np.random.default_rng(0).standard_normal((6, D)).astype(np.float32)

    async def use(runtime):
        mean = await runtime.decode(z)
        draw = await runtime.decode(z, output="draw", seed=4)
        return mean.images, draw.images, await runtime.decode_each(z, seed=4)

    mean, draw, each = perform(use)
    expected = tiny_model.decode(z, uniform(4, places(6), 0, PIXELS))
    assert np.abs(mean - 255.0 * expected["mean"]).max() <= 1.0
    assert np.array_equal(draw, expected["draw"])
    assert np.array_equal(each.draw, draw)
    np.testing.assert_allclose(each.mean, expected["mean"], atol=1e-6)


@pytest.mark.parametrize("seed", [None, 0, 11])
def test_encode(perform, tiny_model, seed):
    images = tiny_model.images(5)
    got = perform(lambda runtime: runtime.encode(images, seed=seed))
    keys = image_keys(images)
    eps = np.zeros((5, D)) if seed is None else normal(seed, keys, 0, D, Purpose.IMAGE)
    expected = tiny_model.encode(images, eps)
    np.testing.assert_allclose(got.latents, expected["z"], atol=1e-5)
    np.testing.assert_allclose(got.prior_eps, expected["prior_eps"], atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 16, 64])
def test_score(perform, tiny_model, loaded, k):
    images = tiny_model.images(6)
    got = perform(lambda runtime: score(runtime, images, k, seed=9))
    keys = np.repeat(image_keys(images), k)
    eps = normal(9, keys, np.tile(np.arange(k), 6), D, Purpose.IMAGE)
    exact = tiny_model.score(images, np.repeat(np.arange(6), k), eps)
    log_weight = exact["log_weight"].reshape(6, k)
    expected = special.logsumexp(log_weight, axis=1) - math.log(k)
    np.testing.assert_allclose(got.log_likelihood_nats, expected, rtol=1e-5)
    np.testing.assert_allclose(got.elbo_nats, log_weight.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(got.bits_per_dim, -expected / (16 * math.log(2)), rtol=1e-5)
    np.testing.assert_allclose(
        got.kl_nats, exact["kl"].reshape(6, k, 1).mean(axis=1), rtol=1e-4, atol=1e-5
    )
    assert got.estimator == ("elbo" if k == 1 else "importance_weighted")
    assert (got.importance_samples, got.seed) == (k, 9)
    calibrated = k in {1, 16, 64}
    assert got.status == ["ok" if calibrated else "not_calibrated"] * 6
    if calibrated:
        reference = loaded.bundle.calibration[k]
        count = [np.sum(reference <= s) for s in got.log_likelihood_nats.astype(np.float32)]
        np.testing.assert_allclose(got.p_value, (1 + np.array(count)) / 201)
    else:
        assert np.isnan(got.p_value).all()
        assert not got.anomalous.any()


def test_images_unlike_the_model_are_anomalous(perform, tiny_model):
    """Of images of noise, the one whose likelihood is least by NumPy's own draws."""
    usual = tiny_model.images(300, seed=8)
    noise = 255 * np.random.default_rng(0).integers(0, 2, (100, 1, 4, 4)).astype(np.uint8)
    owner = np.repeat(np.arange(100), 500)
    eps = np.random.default_rng(1).standard_normal((50_000, D))
    weights = tiny_model.score(noise, owner, eps)["log_weight"].reshape(100, 500)
    unlike = noise[[special.logsumexp(weights, axis=1).argmin()]]

    async def use(runtime):
        return await score(runtime, usual), await score(runtime, unlike)

    scores, odd = perform(use)
    assert np.mean(scores.p_value <= 0.2) == pytest.approx(0.2, abs=0.12)
    assert odd.anomalous.all()
    assert (odd.p_value <= 0.01).all()


def test_scores_tighten_with_importance_samples(perform, tiny_model):
    images = tiny_model.images(100, seed=5)

    async def use(runtime):
        return [(await score(runtime, images, k)).log_likelihood_nats.mean() for k in (1, 16, 64)]

    bounds = perform(use)
    assert bounds[0] < bounds[1] < bounds[2]


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_the_same_bytes_alone_in_a_crowd_and_split(perform, tiny_model, data):
    """Every request of a crowd, with batches of 16 rows and two workers, equals itself alone."""
    kinds = st.sampled_from(["sample", "decode", "encode", "score", "reconstruct"])
    crowd = data.draw(
        st.lists(
            st.tuples(kinds, st.integers(1, 20), st.integers(0, 3), st.integers(1, 9)),
            min_size=2,
            max_size=8,
        )
    )
    pool = tiny_model.images(20, seed=6)
    z = np.random.default_rng(1).standard_normal((20, D)).astype(np.float32)

    async def one(runtime, kind, n, seed, k, caller):
        call = Call(caller=caller)
        output = "draw" if k % 2 else "mean"
        if kind == "sample":
            images = await runtime.sample(
                n, seed=seed, temperature=[0.5 * k], output=output, call=call
            )
            return images.images.tobytes()
        if kind == "decode":
            return (
                await runtime.decode(z[:n], output=output, seed=seed, call=call)
            ).images.tobytes()
        if kind == "encode":
            coded = await runtime.encode(pool[:n], seed=seed or None, call=call)
            return coded.latents.tobytes() + coded.prior_eps.tobytes()
        if kind == "score":
            got = await score(runtime, pool[:n], k, seed, call=call)
            return got.log_likelihood_nats.tobytes() + got.kl_nats.tobytes()
        images = await runtime.reconstruct(pool[:n], seed=seed or None, output=output, call=call)
        return images.images.tobytes()

    async def use(runtime):
        alone = [await one(runtime, *request, "") for request in crowd]
        together = await asyncio.gather(
            *(one(runtime, *request, str(i % 3)) for i, request in enumerate(crowd))
        )
        return alone, together

    alone, together = perform(use)
    assert alone == list(together)


def test_an_image_scores_the_same_wherever_it_stands(perform, tiny_model):
    images = tiny_model.images(30, seed=2)

    async def use(runtime):
        forward = await score(runtime, images, 7)
        backward = await score(runtime, images[::-1], 7)
        single = await score(runtime, images[13:14], 7)
        return forward, backward, single

    forward, backward, single = perform(use)
    assert np.array_equal(forward.log_likelihood_nats, backward.log_likelihood_nats[::-1])
    assert single.log_likelihood_nats[0] == forward.log_likelihood_nats[13]


def test_reconstruction_decodes_the_latents(perform, tiny_model):
    images = tiny_model.images(4)

    async def use(runtime):
        return (await runtime.reconstruct(images)).images, await runtime.encode(images)

    pixels, coded = perform(use)
    expected = tiny_model.decode(coded.latents, np.zeros((4, PIXELS)))["mean"]
    assert np.abs(pixels - 255.0 * expected).max() <= 1.0


def test_interpolation_ends_at_the_reconstructions(perform, tiny_model):
    images = tiny_model.images(2, seed=3)

    async def use(runtime):
        way = await runtime.interpolate(images, n=9)
        return way, await runtime.reconstruct(images)

    way, ends = perform(use)
    assert way.images.shape == (9, 1, 4, 4)
    pairs = way.images[[0, -1]].astype(int) - ends.images
    assert np.abs(pairs).max() <= 1
    assert way.timing.compute_seconds > 0.0


PICTURES = np.zeros((2, 1, 4, 4), dtype=np.uint8)
LATENTS = np.zeros((2, D), dtype=np.float32)


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda r: r.sample(0, seed=0, temperature=[1.0]), InvalidInput, "n must be at least 1"),
        (lambda r: r.sample(1, seed=-1, temperature=[1.0]), InvalidInput, "seed must be from 0"),
        (lambda r: r.sample(1, seed=2**64, temperature=[1.0]), InvalidInput, "seed must be"),
        (lambda r: r.sample(1, seed=0, temperature=[-0.1]), InvalidInput, "negative"),
        (lambda r: r.sample(1, seed=0, temperature=[1e39]), InvalidInput, "beyond float32"),
        (lambda r: r.sample(1, seed=0, temperature=[math.nan]), NonFiniteInput, "finite"),
        (lambda r: r.sample(1, seed=0, temperature=[1, 1]), WrongShape, "1 latent groups"),
        (lambda r: r.sample(1, seed=0, temperature=[1], output="png"), InvalidInput, "output"),
        (lambda r: r.sample_each([], temperature=np.ones((0, 1))), InvalidInput, "seeds"),
        (lambda r: r.sample_each([1], temperature=np.ones((2, 1))), InvalidInput, "one row"),
        (lambda r: r.decode(LATENTS[:, :2]), WrongShape, r"\[n, 3\]"),
        (lambda r: r.decode(LATENTS[:0]), InvalidInput, "number of latents"),
        (lambda r: r.decode(LATENTS.astype(np.float64)), WrongDtype, "float32"),
        (lambda r: r.decode(LATENTS + np.float32(np.inf)), NonFiniteInput, "NaN or infinity"),
        (lambda r: r.encode(PICTURES[:, :, :3]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: r.encode(PICTURES[0]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: r.encode(PICTURES.astype(np.float32)), WrongDtype, "uint8"),
        (lambda r: r.encode(PICTURES, seed=-1), InvalidInput, "seed"),
        (lambda r: score(r, PICTURES[:0]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: score(r, PICTURES, 0), InvalidInput, "importance_samples"),
        (lambda r: score(r, PICTURES, alpha=1.5), InvalidInput, "alpha"),
        (lambda r: score(r, PICTURES, alpha=math.nan), InvalidInput, "alpha"),
        (lambda r: r.reconstruct(PICTURES, output="jpeg"), InvalidInput, "output"),
        (lambda r: r.interpolate(PICTURES[:1], n=5), InvalidInput, "two images"),
        (lambda r: r.interpolate(PICTURES, n=1), InvalidInput, "n must be at least 2"),
    ],
)
def test_bad_arguments_are_refused_by_name(perform, use, error, words):
    with pytest.raises(error, match=words):
        perform(use)


def test_calls_carry_their_deadline(perform):
    late = Call(deadline=time.monotonic() - 1.0)
    with pytest.raises(DeadlineExceeded):
        perform(lambda runtime: runtime.decode(LATENTS, call=late))


def test_life(tiny_bundle):
    seen = []

    class Observer:
        def batch(self, *arguments):
            seen.append(arguments)

        def dropped(self, operation, rows, reason):
            raise AssertionError

        def queue(self, rows):
            assert all(waiting >= 0 for waiting in rows.values())

    def observe(name):
        assert name == "tiny"
        return Observer()

    async def main():
        runtime = ModelRuntime.load(
            tiny_bundle, provider="cpu", workers=1, max_batch_rows=10, observe=observe
        )
        assert (runtime.name, runtime.provider, runtime.precision) == ("tiny", "cpu", "float32")
        assert runtime.healthy
        assert not runtime.ready
        with pytest.raises(ShuttingDown):
            await runtime.decode(LATENTS)
        await runtime.start()
        assert runtime.ready
        await runtime.sample(25, seed=0, temperature=[1.0])
        await runtime.stop()
        assert not runtime.ready

    asyncio.run(main())
    # Blocks of 16: the tiny model's widths are not multiples of a vector register.
    assert [batch[:3] for batch in seen] == [
        ("sample", 10, 6),
        ("sample", 10, 6),
        ("sample", 5, 11),
    ]


def test_batches_hold_each_image_once(loaded, tiny_model):
    """A score batch of ragged pieces: images of a piece ride once, owners point at them."""
    from service.works import ScoreWork

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
    from service import batching
    from service.works import DecodeWork, NoiseKeys

    monkeypatch.setattr(batching, "uniform", lambda *arguments: 1 / 0)
    keys = NoiseKeys(places(2), places(2), Purpose.SAMPLE)
    work = DecodeWork(LATENTS, keys, "mean")
    arrays = batchers(loaded.bundle.manifest)["decode"].assemble([(work, 0, 2)])
    assert not arrays["u"].any()
    drawn = DecodeWork(LATENTS, keys, "draw")
    with pytest.raises(ZeroDivisionError):
        batchers(loaded.bundle.manifest)["decode"].assemble([(drawn, 0, 2)])


def test_two_replicas_agree(tiny_bundle):
    async def main(workers):
        runtime = ModelRuntime.load(tiny_bundle, provider="cpu", workers=workers)
        await runtime.start()
        got = await runtime.sample(50, seed=1, temperature=[1.0], output="draw")
        await runtime.stop()
        return got.images.tobytes()

    assert asyncio.run(main(1)) == asyncio.run(main(3))
    assert Engine.backend == "onnxruntime"
