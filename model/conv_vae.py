"""The paper's MNIST model (Appendix B): a convolutional VAE with one stochastic layer.

Inference: stride-2 residual blocks interleaved with stride-1 ones, a fully connected layer,
then the mean and scale of z_0; that layer's units are also the context h of the flow, which takes
from it, once for each image, its conditions.
Generation mirrors it with transposed convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import ResidualBlock, down_block, same_block, up_block
from model.config import ConvVaeConfig
from model.contract import DensityModel, Features, Inference, LatentGroup, LatentLayout
from model.densities import (
    at_least_float32,
    bounded_gaussian,
    build_likelihood,
    gaussian_log_prob,
    standard_normal_log_prob,
)
from model.flows.flow import build_flow
from model.flows.prior import build_prior
from model.layers import Linear

# Posterior means and log-scales start near 0: q begins close to the prior.
POSTERIOR_INIT_SCALE = 0.1


def _halved(sizes: tuple[int, int]) -> tuple[int, int]:
    return (sizes[0] + 1) // 2, (sizes[1] + 1) // 2


class _Encoder(nn.Module):
    """`[B, C, H, W] -> h [B, hidden]`, after its nonlinearity."""

    def __init__(self, config: ConvVaeConfig) -> None:
        super().__init__()
        blocks: list[ResidualBlock] = []
        in_channels, *sizes = config.image_shape
        size = (sizes[0], sizes[1])
        for i, channels in enumerate(config.channels):
            if i > 0:
                blocks.append(same_block(in_channels))
            blocks.append(down_block(in_channels, channels, first_layer=i == 0))
            in_channels, size = channels, _halved(size)
        self.blocks = nn.Sequential(*blocks)
        self.hidden = Linear(in_channels * size[0] * size[1], config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        a = F.elu(self.blocks(x)).flatten(1)
        return F.elu(self.hidden(a))


class _Decoder(nn.Module):
    """`z [B, D] -> likelihood parameters [B, P, H, W]`."""

    def __init__(self, config: ConvVaeConfig, parameter_channels: int) -> None:
        super().__init__()
        sizes = [(config.image_shape[1], config.image_shape[2])]
        for _ in config.channels:
            sizes.append(_halved(sizes[-1]))
        channels = (parameter_channels, *config.channels)
        blocks: list[ResidualBlock] = []
        for i in reversed(range(len(config.channels))):
            small, large = sizes[i + 1], sizes[i]
            padding = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            # The last block ends in parameters, the others in the mirrored encoder's maps.
            out_channels = channels[i]
            blocks.append(up_block(channels[i + 1], out_channels, padding))
            if i > 0:
                blocks.append(same_block(out_channels))
        self.start = (channels[-1], *sizes[-1])
        self.hidden = Linear(config.latent_dim, config.hidden)
        self.project = Linear(config.hidden, channels[-1] * sizes[-1][0] * sizes[-1][1])
        self.blocks = nn.Sequential(*blocks)

    def forward(self, z: Tensor) -> Tensor:
        a = F.elu(self.hidden(z))
        a = self.project(a).view(-1, *self.start)
        out: Tensor = self.blocks(a)
        return out


class ConvVae(DensityModel):
    """One layer z, N(0, I) or a flow's, under a ResNet decoder, q(z|x) a flow (Appendix B)."""

    config: ConvVaeConfig

    def __init__(self, config: ConvVaeConfig) -> None:
        layout = LatentLayout((LatentGroup("z", config.latent_dim, 1, 1),))
        likelihood = build_likelihood(config.likelihood, config.image_shape)
        super().__init__(config, layout, likelihood)
        self.encoder = _Encoder(config)
        self.mean = Linear(config.hidden, config.latent_dim, init_scale=POSTERIOR_INIT_SCALE)
        self.log_scale = Linear(config.hidden, config.latent_dim, init_scale=POSTERIOR_INIT_SCALE)
        self.flow = build_flow(config.posterior, config.latent_dim, config.hidden)
        self.prior = build_prior(config.prior, config.latent_dim)
        self.decoder = _Decoder(config, likelihood.parameter_channels)

    def bottom_up(self, x: Tensor) -> Features:
        """Give `(mean [B, D], log_scale [B, D])` of q(z_0|x), then the flow's conditions."""
        h = self.encoder(self.likelihood.network_input(x))
        mean, log_scale = bounded_gaussian(
            at_least_float32(self.mean(h)), at_least_float32(self.log_scale(h))
        )
        return mean, log_scale, *self.flow.condition(h)

    def infer(self, features: Features, eps: Tensor) -> Inference:
        """Algorithm 1 of the paper, and the prior's density by its inverse."""
        mean, log_scale, *_ = features
        z_0, z, log_det = self._posterior(features, eps)
        log_q = gaussian_log_prob(z_0, mean, log_scale).sum(dim=1, keepdim=True) - log_det
        prior_eps, prior_log_det = self.prior.inverse(z)
        log_p = standard_normal_log_prob(prior_eps).sum(dim=1, keepdim=True) + prior_log_det
        return Inference(z=z, prior_eps=prior_eps, kl=log_q - log_p, params=self.decoder(z))

    def _posterior(self, features: Features, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_0, z and the flow's log-determinant."""
        mean, log_scale, *conditions = features
        z_0 = mean + torch.exp(log_scale) * eps
        return z_0, *self.flow(z_0, tuple(conditions))

    def prior_data(self, features: Features, eps: Tensor) -> Tensor:
        """Give z."""
        _, z, _ = self._posterior(features, eps)
        return z

    def generate(self, eps: Tensor, temperature: Tensor) -> Tensor:
        """Decode f(T * eps)."""
        return self.decode(self.prior(temperature * eps))

    def decode(self, z: Tensor) -> Tensor:
        """Give the likelihood's parameters `[B, P, H, W]`."""
        params: Tensor = self.decoder(z)
        return params

    def group_kl(self, kl: Tensor) -> Tensor:
        """One part, one group."""
        return kl
