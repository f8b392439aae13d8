"""Figures against a linear-Gaussian model whose log p(x) is known in closed form.

p(z) = N(0, I), p(x|z) = N(W z, s^2 I), so that p(x) = N(0, W W' + s^2 I); the exact posterior is
Gaussian too. The inference network is a Gaussian that is exact, or wrong by a known amount.
"""

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from scipy import stats

from model import build_model
from model.config import ConvVaeConfig
from model.contract import DensityModel, Inference, LatentGroup, LatentLayout
from model.densities import gaussian_log_prob, standard_normal_log_prob
from service.estimators import estimate
from training.data import ImageData, drawn_pixels
from training.errors import EvaluationError
from training.evaluate import evaluate as evaluation
from training.evaluate.draws import Sums
from training.evaluate.evaluate import evaluate_images, evaluate_model, image_figures

D, SIDE, NOISE = 3, 2, 0.5


class UnitGaussian:
    """x = (pixel - 128) / 64, Gaussian around its parameters."""

    kind = "gaussian"
    uniforms = 1

    def from_pixels(self, pixels):
        return (pixels.float() - 128) / 64

    def log_prob(self, params, x):
        scale = torch.tensor(math.log(NOISE))
        return gaussian_log_prob(x, params, scale).flatten(1).sum(1)


class LinearGaussian(DensityModel):
    """Two latent groups, of 1 and of 2; the posterior's scale is too large by `excess`."""

    def __init__(self, excess=1.0, dead=False):
        config = SimpleNamespace(image_shape=(1, SIDE, SIDE))
        layout = LatentLayout((LatentGroup("top", 1, 1, 1), LatentGroup("low", 2, 1, 1)))
        super().__init__(config, layout, UnitGaussian())
        generator = torch.Generator().manual_seed(5)
        weight = torch.linalg.qr(torch.randn(SIDE * SIDE, D, generator=generator)).Q
        weight = weight * torch.tensor([0.0 if dead else 0.7, 1.0, 1.5])  # orthogonal columns
        self.weight = torch.nn.Parameter(weight)
        self.excess = excess
        self.batches = 0

    def bottom_up(self, x):
        precision = 1 + self.weight.square().sum(0) / NOISE**2  # of the posterior: diagonal
        return (x.flatten(1) @ self.weight / NOISE**2 / precision, precision.expand(len(x), D))

    def infer(self, features, eps):
        mean, precision = features
        log_scale = math.log(self.excess) - 0.5 * precision.log()
        z = mean + log_scale.exp() * eps
        kl = gaussian_log_prob(z, mean, log_scale) - standard_normal_log_prob(z)
        return Inference(z=z, prior_eps=z, kl=kl, params=self.decode(z))

    def generate(self, eps, temperature):
        raise NotImplementedError

    def decode(self, z):
        return (z @ self.weight.T).view(-1, 1, SIDE, SIDE)

    def group_kl(self, kl):
        return torch.stack([kl[:, 0], kl[:, 1:].sum(1)], dim=1)

    def log_likelihood(self, pixels):
        """log p(x), float64, by scipy: nothing here is shared with the model."""
        x = (pixels.reshape(len(pixels), -1).astype(np.float64) - 128) / 64
        weight = self.weight.detach().double().numpy()
        covariance = weight @ weight.T + NOISE**2 * np.eye(SIDE * SIDE)
        return stats.multivariate_normal(np.zeros(SIDE * SIDE), covariance).logpdf(x)

    def kl(self, pixels):
        """KL(q || p(z)) of each latent, [N, D], in closed form."""
        x = (pixels.reshape(len(pixels), -1).astype(np.float64) - 128) / 64
        weight = self.weight.detach().double().numpy()
        precision = 1 + np.square(weight).sum(0) / NOISE**2
        mean, variance = x @ weight / NOISE**2 / precision, self.excess**2 / precision
        return 0.5 * (np.square(mean) + variance - 1 - np.log(variance))


@pytest.fixture(scope="module")
def pixels():
    """300 draws from the model's own marginal, as pixels (which only rounds them)."""
    model = LinearGaussian()
    rng = np.random.default_rng(3)
    z, noise = rng.standard_normal((300, D)), rng.standard_normal((300, SIDE * SIDE))
    x = z @ model.weight.detach().numpy().T + NOISE * noise
    return np.clip(np.rint(x * 64 + 128), 0, 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)


def test_an_exact_posterior_gives_log_p_itself_at_every_draw(pixels):
    """With q(z|x) = p(z|x) every importance weight is p(x)."""
    model = LinearGaussian()
    figures = evaluate_images(model, pixels, importance_samples=20, seed=1)
    exact = model.log_likelihood(pixels)
    assert np.allclose(figures.importance_weighted, exact, rtol=0, atol=2e-5)
    assert np.allclose(figures.elbo, exact, rtol=0, atol=2e-5)
    assert np.allclose(figures.effective_sample_size, 20, rtol=1e-4)


def test_elbo_below_iw_below_log_p_and_the_gap_closes(pixels):
    model = LinearGaussian(excess=1.6)
    exact = model.log_likelihood(pixels)
    gaps = []
    for draws in (1, 8, 64, 512):
        figures = evaluate_images(model, pixels, importance_samples=draws, seed=2)
        assert (figures.elbo <= figures.importance_weighted + 1e-9).all()  # for the same draws
        gap = exact - figures.importance_weighted
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        assert gap.mean() > -3 * error
        gaps.append(gap.mean())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] < 0.01


def test_elbo_and_kl_agree_with_their_closed_forms(pixels):
    """ELBO = log p(x) - KL(q || p(z|x)), here D times the KL of a Gaussian of scale 1.6."""
    excess = 1.6
    model = LinearGaussian(excess=excess)
    figures = evaluate_images(model, pixels, importance_samples=256, seed=3)
    gap = D * 0.5 * (excess**2 - 1 - 2 * math.log(excess))
    z_scores = (figures.elbo - (model.log_likelihood(pixels) - gap)) / np.sqrt(
        figures.elbo_variance
    )
    assert stats.kstest(z_scores, "norm").pvalue > 1e-3
    kl = model.kl(pixels)
    expected = np.stack([kl[:, 0], kl[:, 1:].sum(1)], axis=1).mean(0)
    assert np.allclose(figures.kl.mean(0), expected, atol=0.02)
    assert np.allclose(figures.log_px_z - figures.kl.sum(1), figures.elbo)


def test_the_delta_methods_error_is_the_spread_over_seeds(pixels):
    model = LinearGaussian(excess=1.3)
    runs = [
        evaluate_images(model, pixels[:40], importance_samples=100, seed=seed) for seed in range(60)
    ]
    spread = np.var([run.importance_weighted for run in runs], axis=0, ddof=1)
    stated = np.mean([run.importance_weighted_variance for run in runs], axis=0)
    assert stated.mean() == pytest.approx(spread.mean(), rel=0.1)
    spread = np.var([run.elbo for run in runs], axis=0, ddof=1)
    stated = np.mean([run.elbo_variance for run in runs], axis=0)
    assert stated.mean() == pytest.approx(spread.mean(), rel=0.1)


@pytest.mark.parametrize(("batch_size", "chunk"), [(7, 3), (300, 16), (64, 40), (50, 1000)])
def test_batches_and_chunks_change_nothing(pixels, batch_size, chunk, monkeypatch):
    model = LinearGaussian(excess=1.6)
    one = evaluate_images(model, pixels[:100], importance_samples=50, seed=4)
    monkeypatch.setattr(evaluation, "pieces", lambda *_: (batch_size, chunk))
    other = evaluate_images(model, pixels[:100], importance_samples=50, seed=4)
    for name in ("elbo", "importance_weighted", "kl", "effective_sample_size"):
        assert np.allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5), name


def test_another_seed_is_other_noise_and_the_first_draws_are_shared(pixels):
    model = LinearGaussian(excess=1.6)
    few = evaluate_images(model, pixels[:5], importance_samples=1, seed=4)
    again = evaluate_images(model, pixels[:5], importance_samples=1, seed=5)
    assert not np.allclose(few.elbo, again.elbo, atol=1e-3)
    assert len(np.unique(np.round(few.elbo - model.log_likelihood(pixels[:5]), 6))) == 5


def test_active_units_are_those_whose_posterior_mean_varies(pixels):
    """Var_x E_q[z_d] is known here; a latent that the images do not use stays near zero."""
    data = ImageData(pixels, "gaussian", "test")
    report = evaluate_model(LinearGaussian(dead=True), data, importance_samples=8)
    assert report.active_units == {"top": 0, "low": 2}
    assert report.latents == {"top": 1, "low": 2}
    figures = evaluate_images(LinearGaussian(), pixels, importance_samples=64)
    model = LinearGaussian()
    x = model.likelihood.from_pixels(torch.from_numpy(pixels))
    exact = model.bottom_up(x)[0].detach().double().numpy().var(0)
    assert np.allclose(figures.posterior_mean_variance, exact, rtol=0.05)


def test_a_unit_with_wide_posterior_is_not_counted_for_its_draws_alone(pixels):
    """With 2 draws the mean of a dead latent varies by 1/2: far above 0.01, if uncorrected."""
    figures = evaluate_images(LinearGaussian(dead=True), pixels, importance_samples=2)
    error = math.sqrt(2 / len(pixels))
    assert abs(figures.posterior_mean_variance[0]) < 4 * error * 0.5
    many = evaluate_images(LinearGaussian(dead=True), pixels, importance_samples=512)
    assert many.posterior_mean_variance[0] < 0.002


def test_the_report_says_what_was_found(pixels):
    data = ImageData(pixels, "gaussian", "test")
    model = LinearGaussian(excess=1.3)
    with Progress(console=Console(quiet=True)) as progress:
        report = evaluate_model(model, data, importance_samples=16, seed=9, progress=progress)
        assert progress.tasks[0].completed == 300
    exact = model.log_likelihood(pixels)
    bound = report.importance_weighted
    assert report.elbo.value_nats < bound.value_nats < exact.mean() + 0.05
    assert bound.bits_per_dim == pytest.approx(-bound.value_nats / (4 * math.log(2)))
    assert bound.standard_error_nats == pytest.approx(exact.std(ddof=1) / math.sqrt(300), rel=0.1)
    assert 0 < bound.monte_carlo_error_nats < bound.standard_error_nats
    assert report.elbo.value_nats == pytest.approx(
        report.log_px_z_nats - sum(report.kl_nats.values()), rel=1e-6
    )
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["kl_nats"].keys() == {"top", "low"}
    assert "300 images of the test split" in document["protocol"]
    entries = report.manifest_entries("iafvae-train evaluate RUN")
    assert [entry["estimator"] for entry in entries] == ["elbo", "importance_weighted"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for word in ("ELBO", "IW-16", "KL top", "active units low", "bits/dim"):
        assert word in text


def test_one_draw_is_an_elbo_without_an_error_of_its_own(pixels):
    report = evaluate_model(
        LinearGaussian(), ImageData(pixels[:1], "gaussian", "test"), importance_samples=1
    )
    assert report.elbo.monte_carlo_error_nats is None
    assert report.elbo.standard_error_nats is None
    assert report.active_units is None
    assert report.manifest_entries("x") == []  # one image has no standard error to state
    json.dumps(report.to_dict(), allow_nan=False)
    two = ImageData(pixels[:2], "gaussian", "test")
    report = evaluate_model(LinearGaussian(), two, importance_samples=1)
    assert [entry["estimator"] for entry in report.manifest_entries("x")] == ["elbo"]


def test_what_does_not_fit_and_what_is_not_finite_are_named(pixels):
    with pytest.raises(EvaluationError, match=r"images \(1, 2, 2\)"):
        evaluate_images(LinearGaussian(), pixels[:, :, :1], importance_samples=1)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_images(LinearGaussian(), pixels, importance_samples=0)
    broken = LinearGaussian()
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="300 of 300 images is not finite"):
        evaluate_model(broken, ImageData(pixels, "gaussian", "test"), importance_samples=2)


def test_sums_over_draws_say_what_the_draws_themselves_say():
    """In two chunks of draws and two parts of images, against the service's estimates of all."""
    generator = torch.Generator().manual_seed(0)
    log_px_z = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    kl = torch.rand(7, 5, 2, generator=generator, dtype=torch.float64)

    def summed(draws, images):
        z = torch.zeros(len(log_px_z[draws]), len(log_px_z[0, images]), 0)
        return Sums.of(SimpleNamespace(log_px_z=log_px_z[draws, images], kl=kl[draws, images], z=z))

    parts = [summed(slice(3), p) + summed(slice(3, 7), p) for p in (slice(2), slice(2, 5))]
    figures = image_figures(parts, 7)
    log_weight = (log_px_z - kl.sum(dim=2)).numpy().T
    wanted = estimate(log_weight)
    for got, known in (
        (figures.elbo, wanted.elbo_nats),
        (figures.importance_weighted, wanted.log_likelihood_nats),
        (figures.importance_weighted_variance, wanted.standard_error_nats**2),
        (figures.effective_sample_size, wanted.effective_sample_size),
        (figures.elbo_variance, log_weight.var(axis=1, ddof=1) / 7),
    ):
        np.testing.assert_allclose(got, known, rtol=1e-9)


def test_drawn_pixels_are_fixed_binary_and_have_the_grey_values_mean():
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (3000, 1, 16, 16))
    drawn = drawn_pixels(grey, 0)
    assert set(np.unique(drawn)) == {0, 255}
    p = np.arange(256) / 255
    error = (drawn.mean(0).ravel() / 255 - p)[1:-1] / np.sqrt(p * (1 - p) / 3000)[1:-1]
    assert stats.kstest(error, "norm").pvalue > 1e-3
    assert np.array_equal(drawn_pixels(grey[:5], 0), drawn[:5])
    assert not np.array_equal(drawn_pixels(grey, 1), drawn)


def test_a_bernoulli_model_is_measured_on_drawn_pixels():
    torch.manual_seed(0)
    model = build_model(ConvVaeConfig(image_shape=(1, 8, 8), channels=(4,), hidden=8, latent_dim=4))
    grey = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    report = evaluate_model(model, ImageData(grey, "grey", "test"), importance_samples=4, seed=3)
    figures = evaluate_images(model, drawn_pixels(grey, 3), importance_samples=4, seed=3)
    assert report.elbo.value_nats == pytest.approx(figures.elbo.mean())
    assert "drawn once to 0 or 255" in report.protocol
