"""Operations against the tiny model in NumPy fed with the same noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from service.noise import Purpose, image_keys, normal, uniform
from service.operations.model import Model

D, PIXELS = 3, 16


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
        work = runtime.sampling(40, seed=3, temperature=[1.0], output="draw")
        piece = await runtime.draw(work.piece(21, 28))
        warmth = np.ones((2, 1), dtype=np.float32)
        each = await runtime.sample_each([3, 2**63 - 1], temperature=warmth)
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
        mean = await runtime.decode(z, seed=4)
        draw = await runtime.decode(z, output="draw", seed=4)
        assert (mean.seed, draw.seed) == (None, 4), "a mean takes no noise"
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
def test_score(perform, tiny, tiny_model, loaded, k, model_bench):
    images = tiny_model.images(6)
    got = perform(lambda runtime: model_bench.score(runtime, images, k, seed=9))
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
    assert got.resolved["estimator"] == ("elbo" if k == 1 else "importance_weighted")
    assert (got.resolved["importance_samples"], got.seed) == (k, 9)
    calibrated = k in {1, 16, 64}
    assert got.status == ["ok" if calibrated else "not_calibrated"] * 6
    if calibrated:
        evidence = {n: a.astype(np.float32) for n, a in tiny_model.at_zero(images).items()}
        measured = tiny.measured_of({k: expected}, evidence, images, binary=True)
        wanted = tiny.reference(tiny_model).judge(k, measured)
        np.testing.assert_allclose(got.p_value, wanted.p_value, atol=1.01 / 201)
        for name, p in wanted.parts.items():
            np.testing.assert_allclose(got.evidence[name], p, atol=2.01 / 201)
        assert got.anomalous == (got.p_value <= 0.01).tolist()
    else:
        assert np.isnan(got.p_value).all()
        assert got.anomalous == [None] * 6


def test_images_unlike_the_model_are_anomalous(perform, tiny, tiny_model, model_bench):
    """Of images of noise, those that are farther off than all calibration images under each of six
    noises of NumPy's."""
    usual = tiny_model.images(300, seed=8)
    noise = 255 * np.random.default_rng(0).integers(0, 2, (2000, 1, 4, 4)).astype(np.uint8)
    judge = tiny.reference(tiny_model).judge
    found = [judge(16, tiny.measured(tiny_model, noise, seed)).p_value for seed in range(6)]
    unlike = noise[np.max(found, axis=0) < 1.5 / 201]
    assert len(unlike) >= 3

    async def use(runtime):
        return await model_bench.score(runtime, usual), await model_bench.score(runtime, unlike)

    scores, odd = perform(use)
    assert np.mean(scores.p_value <= 0.2) == pytest.approx(0.2, abs=0.12)
    assert all(odd.anomalous)
    assert (odd.p_value <= 0.01).all()


def test_an_altered_image_is_decided_and_discovered_alike(perform, tiny_model):
    """The calibration says nothing of it: neither verdict nor discovery, for or against others."""
    images, altered = tiny_model.images(4), np.array([True, False, True, False])
    scores = perform(lambda runtime: runtime.score(images, fdr=0.99, altered=altered))
    assert [one is None for one in scores.anomalous] == altered.tolist()
    assert [one is None for one in scores.discovery] == altered.tolist()


def test_where_calibration_was_of_fitted_images_one_is_decided(
    tiny, tiny_model, model_bench, tmp_path
):
    """As after `inspect`: what `resize` fits is what was calibrated on. Crossed, the reference
    certifies no threshold."""
    calibration = tiny.tiny_manifest()["calibration"] | {"fitted": True, "folds": 5}
    bundle = tiny.write_tiny_bundle(tmp_path / "fitted", calibration=calibration)
    perform = model_bench.performer(Model.load(bundle.path, provider="cpu", workers=1))
    images, altered = tiny_model.images(4), np.array([True, False, True, False])

    async def use(runtime):
        plain = await runtime.score(images, alpha=0.1, fdr=0.99)
        fitted = await runtime.score(images, alpha=0.1, fdr=0.99, altered=altered)
        return plain, fitted

    plain, fitted = perform(use)
    assert fitted.status == ["ok"] * 4
    assert None not in fitted.anomalous
    assert (fitted.anomalous, fitted.discovery) == (plain.anomalous, plain.discovery)
    assert fitted.resolved["certified_alpha"] is None


def test_scores_tighten_with_importance_samples(perform, tiny_model, model_bench):
    images = tiny_model.images(100, seed=5)

    async def use(runtime):
        return [
            (await model_bench.score(runtime, images, k)).log_likelihood_nats.mean()
            for k in (1, 16, 64)
        ]

    bounds = perform(use)
    assert bounds[0] < bounds[1] < bounds[2]


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
    assert way.compute_seconds > 0.0


def test_the_time_of_an_answer_is_that_of_all_its_jobs(perform, tiny_model, monkeypatch):
    images, jobs = tiny_model.images(2, seed=3), []

    async def use(runtime):
        submit = runtime.scheduler.submit

        async def kept(*args, **kwargs):
            jobs.append(await submit(*args, **kwargs))
            return jobs[-1]

        monkeypatch.setattr(runtime.scheduler, "submit", kept)
        return await runtime.reconstruct(images)

    answer = perform(use)
    assert len(jobs) == 2
    assert answer.compute_seconds == sum(job.compute_seconds for job in jobs)
    assert answer.queue_seconds == sum(job.queue_seconds for job in jobs)
