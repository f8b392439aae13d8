"""The ladder's densities against slow, independent computations in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from model import build_model
from model.config import ConvIafPosterior, DiagonalPosterior, ResnetVaeConfig
from model.layers import data_dependent_init
from model.objective import importance_weighted_bound
from model.resnet_vae import ResnetVae

SMALL = ResnetVaeConfig(image_shape=(1, 7, 6), channels=4, z_channels=2, levels=(2, 1))
BOTTOM_UP = replace(SMALL, inference="bottom_up")


def prepared(config: ResnetVaeConfig, rows: int = 3) -> tuple[ResnetVae, Tensor, Tensor]:
    """A model in float64 with weights far from any special value."""
    torch.manual_seed(0)
    model = build_model(config)
    x = torch.randint(0, 256, (rows, *config.image_shape)).float()
    if config.likelihood == "bernoulli":
        x = (x > 127).float()
    eps = torch.randn(rows, model.layout.dim)
    with torch.no_grad(), data_dependent_init(model):
        model(x, eps)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double(), x.double(), eps.double()


class Slow:
    """log q(z|x) and log p(z) of given z, layer by layer, with plain convolutions.

    Maps are cut by position, densities are torch's own, and the flow's log-determinant is that of
    a numerical Jacobian at the z_0 that the sequential inverse finds.
    """

    def __init__(self, model: ResnetVae) -> None:
        self.model, self.config = model, model.config
        self.h, self.z = model.config.channels, model.config.z_channels
        self.sizes = [(g.height, g.width) for g in model.layout.groups]  # top first
        self.names = model.layout.names

    def conv(self, layer: torch.nn.Module, a: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(a, layer.weight(), layer.bias, stride=stride, padding=1)

    def strides(self, name: str) -> int:
        """2 for the first layer of every level but the finest."""
        below = 0
        for level, layers in enumerate(self.config.levels):
            if int(name[1:]) == below + 1 and level > 0:
                return 2
            below += layers
        return 1

    def latents(self, z: Tensor) -> dict[str, Tensor]:
        shapes = [(len(z), self.z, *size) for size in self.sizes]
        parts = z.split([math.prod(shape[1:]) for shape in shapes], dim=1)
        return {
            n: part.reshape(shape) for n, part, shape in zip(self.names, parts, shapes, strict=True)
        }

    def up(self, x: Tensor, z: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The posterior's maps of the way up; z joins it where inference is bottom-up."""
        stem = self.model.stem
        image = self.model.likelihood.network_input(x)
        h = F.conv2d(image, stem.weight(), stem.bias, stride=2, padding=2)
        found = {}
        for name in reversed(self.names):
            layer, stride = self.model.up[name], self.strides(name)
            maps = self.conv(layer.parts.conv, F.elu(h), stride)
            if name == self.names[0]:
                found[name] = maps
                break
            found[name], state = maps[:, : -self.h], maps[:, -self.h :]
            inner = state if z is None else torch.cat([z[name], state], 1)
            h = h[:, :, ::stride, ::stride] + 0.1 * self.conv(layer.residual.conv, F.elu(inner))
        return found

    def down(self, z: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Prior's maps, posterior's maps of the way down, and the maps below."""
        rows = len(next(iter(z.values())))
        h = self.model.top.view(1, -1, 1, 1) * torch.ones(rows, 1, *self.sizes[0]).double()
        priors, posteriors = {}, {}
        outer = [*self.sizes[1:], None]
        for name, size in zip(self.names, outer, strict=True):
            layer = self.model.down[name]
            maps = self.conv(layer.parts.conv, F.elu(h))
            priors[name], state = maps[:, : 2 * self.z], maps[:, 2 * self.z : 2 * self.z + self.h]
            posteriors[name] = maps[:, 2 * self.z + self.h :]
            inner = F.elu(torch.cat([z[name], state], 1))
            conv = layer.residual.conv
            if self.strides(name) == 1:
                h = h + 0.1 * self.conv(conv, inner)
                continue
            nearest = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : size[0], : size[1]]
            full = F.conv_transpose2d(inner, conv.weight(), conv.bias, stride=2)
            padded = F.pad(full, (0, 1, 0, 1), value=0.0)
            padded[..., -1, :] += conv.bias.view(1, -1, 1)
            padded[..., :-1, -1] += conv.bias.view(1, -1, 1)
            h = nearest + 0.1 * padded[:, :, 1 : size[0] + 1, 1 : size[1] + 1]
        return priors, posteriors, h

    def log_q(self, name: str, maps: Tensor, z: Tensor) -> Tensor:
        mean, log_scale, context = maps.split([self.z, self.z, maps.shape[1] - 2 * self.z], dim=1)
        flow = self.model.posterior[name].flow
        conditions = flow.condition(context)
        z_0 = flow.inverse(z, conditions)
        log_q = Normal(mean, log_scale.exp()).log_prob(z_0).flatten(1).sum(1)
        return log_q - torch.stack([self.log_det(flow, z_0, conditions, i) for i in range(len(z))])

    @staticmethod
    def log_det(flow: torch.nn.Module, z_0: Tensor, conditions: object, row: int) -> Tensor:
        here = tuple(c[row : row + 1] for c in conditions)
        shape = z_0[row : row + 1].shape
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: flow(flat.view(shape), here)[0].flatten(), z_0[row].flatten()
        )
        return torch.linalg.slogdet(jacobian).logabsdet

    def log_p(self, maps: Tensor, z: Tensor) -> Tensor:
        mean, log_scale = maps.split(self.z, dim=1)
        return Normal(mean, log_scale.exp()).log_prob(z).flatten(1).sum(1)

    def kl(self, x: Tensor, flat: Tensor) -> Tensor:
        """log q(z_l | ...) - log p(z_l | ...), `[B, L]`, top first."""
        z = self.latents(flat)
        bidirectional = self.config.inference == "bidirectional"
        shares = self.up(x, None if bidirectional else z)
        priors, more, _ = self.down(z)
        columns = []
        for name in self.names:
            maps = shares[name] + more[name] if bidirectional else shares[name]
            columns.append(self.log_q(name, maps, z[name]) - self.log_p(priors[name], z[name]))
        return torch.stack(columns, 1)


EXACT = {
    "iaf": SMALL,
    "iaf, bottom-up": BOTTOM_UP,
    "diagonal": replace(SMALL, posterior=DiagonalPosterior()),
    "diagonal, bottom-up": replace(BOTTOM_UP, posterior=DiagonalPosterior()),
    "gated": replace(SMALL, posterior=ConvIafPosterior(update="gated", hidden_layers=1)),
    "two steps": replace(SMALL, posterior=ConvIafPosterior(steps=2)),
    "two steps, bottom-up": replace(BOTTOM_UP, posterior=ConvIafPosterior(steps=2)),
    "location": replace(SMALL, posterior=ConvIafPosterior(update="location", hidden_layers=0)),
    "three levels, even sizes": replace(SMALL, image_shape=(1, 8, 10), levels=(1, 1, 1)),
}


@pytest.mark.parametrize("name", EXACT)
def test_kl_of_every_layer_against_the_slow_computation(name: str) -> None:
    model, x, eps = prepared(EXACT[name])
    with torch.no_grad():
        inference = model.infer(model.bottom_up(x), eps)
        wanted = Slow(model).kl(x, inference.z)
    torch.testing.assert_close(model.group_kl(inference.kl), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["iaf", "iaf, bottom-up", "three levels, even sizes"])
def test_the_image_against_the_slow_computation(name: str) -> None:
    """The head: elu, 5x5 transposed convolution, means clipped, one log-scale for all pixels."""
    model, x, eps = prepared(EXACT[name])
    slow = Slow(model)
    with torch.no_grad():
        model.head.log_scale.fill_(-2.0)  # broad: a difference of cumulatives is exact enough
        z = model.infer(model.bottom_up(x), eps).z
        *_, h = slow.down(slow.latents(z))
        height, width = model.config.image_shape[1:]
        conv = model.head.conv
        # A transposed convolution by its definition: zeros between the pixels, flipped kernel.
        spread = torch.zeros(len(x), h.shape[1], height, width).double()
        spread[:, :, ::2, ::2] = F.elu(h)
        kernel = conv.weight().flip(2, 3).transpose(0, 1)
        mean = F.conv2d(spread, kernel, conv.bias, padding=2)
        mean = mean.clamp(-0.5 + 1 / 512, 0.5 - 1 / 512)
        torch.testing.assert_close(model.decode(z)[:, :1], mean)
        scale = model.head.log_scale.exp()
        edges = (torch.arange(257).double() / 256 - 0.5 - mean[..., None]) / scale
        cumulative = torch.sigmoid(edges)
        cumulative[..., 0], cumulative[..., -1] = 0.0, 1.0
        p = cumulative.diff(dim=-1).gather(-1, x.long()[..., None])
        log_px_z, _ = model(x, eps)
    torch.testing.assert_close(log_px_z, p.log().flatten(1).sum(1), rtol=1e-6, atol=1e-6)


def tiny(posterior: object, inference: str, likelihood: str) -> ResnetVaeConfig:
    """Two latent numbers: small enough for a grid."""
    return ResnetVaeConfig(
        image_shape=(1, 2, 2),
        likelihood=likelihood,
        mixtures=2,
        channels=4,
        z_channels=1,
        levels=(2,),
        inference=inference,
        posterior=posterior,
    )


def broad(config: ResnetVaeConfig) -> tuple[ResnetVae, Tensor]:
    """A model whose posterior is broader than its prior: weights of finite variance."""
    model, x, _ = prepared(config, rows=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".g"):
                parameter.mul_(0.3)
        for layer in model.up.values():
            layer.parts.conv.bias[1] = 0.7  # the log-scale
        for layer in model.down.values():
            layer.parts.conv.bias[1] = 0
            layer.parts.conv.g[1] *= 0.1
    return model, x[:2]


@pytest.mark.parametrize("likelihood", ["bernoulli", "discretized_logistic", "logistic_mixture"])
@pytest.mark.parametrize("inference", ["bidirectional", "bottom_up"])
@pytest.mark.parametrize("posterior", [DiagonalPosterior(), ConvIafPosterior(steps=2)])
@torch.no_grad()
def test_importance_weights_average_to_the_marginal(
    posterior: object, inference: str, likelihood: str
) -> None:
    """p(x) by quadrature over the prior, through `generate`; the weights by `infer`.

    E[w] = p(x) holds only if q's density, the prior's and the likelihood's all agree.
    """
    model, x = broad(tiny(posterior, inference, likelihood))
    grid = torch.linspace(-7, 7, 141, dtype=torch.float64)
    eps = torch.cartesian_prod(grid, grid)
    params = model.generate(eps, torch.ones(len(eps), 2).double())
    log_prior = Normal(0.0, 1.0).log_prob(eps).sum(1) + 2 * math.log(14 / 140)
    samples = 6000
    for row in x:
        many = row.expand(len(eps), *row.shape)
        exact = torch.logsumexp(log_prior + model.likelihood.log_prob(params, many), 0)
        batch = row.expand(samples, *row.shape)
        log_px_z, kl = model(batch, torch.randn(samples, 2).double())
        log_weight = log_px_z - kl.sum(1)
        ratio = (log_weight - exact).exp()
        error = ratio.std() / samples**0.5
        assert (ratio.mean() - 1).abs() < 5 * error
        assert error < 0.2
        bound = importance_weighted_bound(log_weight.view(-1, 60).T)  # K = 60
        assert log_weight.mean() < bound.mean() < exact + 5 * bound.std() / 10


def test_the_top_layer_is_drawn_from_its_prior_made_warm() -> None:
    """z_L depends on nothing above it: Gaussian draws with the slow computation's moments."""
    model, _, _ = prepared(SMALL)
    slow = Slow(model)
    draws: list[Tensor] = []
    model.down["z3"].residual.register_forward_pre_hook(lambda _, args: draws.append(args[1]))
    rows, warmth = 4000, 0.7
    with torch.no_grad():
        model.generate(
            torch.randn(rows, model.layout.dim).double(), torch.full((rows, 3), warmth).double()
        )
        priors, _, _ = slow.down(slow.latents(torch.zeros(1, model.layout.dim).double()))
    mean, log_scale = (t.flatten() for t in priors["z3"].split(2, dim=1))
    scale = warmth * log_scale.exp()
    z = draws[0].flatten(1)
    assert ((z.mean(0) - mean).abs() < 5 * scale / rows**0.5).all()
    assert ((z.std(0) / scale - 1).abs() < 5 / (2 * rows) ** 0.5).all()
