"""A mixture of discretised logistics for each pixel, its colours one after another.

Salimans, Karpathy, Chen & Kingma 2017 (PixelCNN++, arXiv:1701.05517), section 2.1-2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.logistic import (
    MAX_LOG_SCALE,
    MIN_LOG_SCALE,
    as_share_of_255,
    at_least_float32,
    bin_centre,
    bin_log_prob,
    draw_level,
)

# Parameters of zero stand for a broad density: components spread over the range, this wide each.
START_LOG_SCALE = -2.5
START_SPREAD = 0.45


@dataclass(frozen=True)
class _Components:
    """What the parameters say, one tensor `[B, K, H, W]` for each colour or pair of colours."""

    log_weight: Tensor  # normalised over K
    mean: list[Tensor]
    log_scale: list[Tensor]
    slope: dict[tuple[int, int], Tensor]  # (colour, earlier colour)

    def location(self, colour: int, earlier: list[Tensor]) -> Tensor:
        """Give the components' locations given the values `[B, 1 or K, H, W]` before them."""
        location = self.mean[colour]
        for other, value in enumerate(earlier):
            location = location + self.slope[colour, other] * value
        return location


class LogisticMixture:
    """K logistics a pixel: one indicator for all its colours, each colour linear in earlier ones.

    p(r, g, b) = sum_k w_k p_k(r) p_k(g | r) p_k(b | r, g); component k's location for a colour is
    its mean plus tanh-bounded slopes times the values of the colours before it, taken at the
    centres of their bins. The parameter channels are K logits, K means for each colour, K
    log-scales for each colour, and K slopes for each pair of colours. Drawing takes 1 + C uniforms
    a pixel: the component's, then each colour's, as planes `[1 + C, H, W]`.
    """

    kind = "logistic_mixture"

    def __init__(self, image_shape: tuple[int, int, int], mixtures: int = 10) -> None:
        self.channels, self.height, self.width = image_shape
        self.mixtures = mixtures
        pairs = self.channels * (self.channels - 1) // 2
        self.parameter_channels = mixtures * (1 + 2 * self.channels + pairs)
        self.uniforms = (1 + self.channels) * self.height * self.width
        # Evenly spaced over the range.
        self._centres = [START_SPREAD * ((2 * k + 1) / mixtures - 1) for k in range(mixtures)]

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Levels 0..255 as floats."""
        return pixels.float()

    def network_input(self, x: Tensor) -> Tensor:
        """Bin centres."""
        return bin_centre(x)

    def _components(self, params: Tensor) -> _Components:
        # Planes: cut along the channels, maps in channels_last would be strided.
        logits, *rest = torch.split(at_least_float32(params).contiguous(), self.mixtures, dim=1)
        c = self.channels
        centres = logits.new_tensor(self._centres).view(1, -1, 1, 1)
        pairs = [(colour, other) for colour in range(c) for other in range(colour)]
        return _Components(
            log_weight=F.log_softmax(logits, dim=1),
            mean=[raw + centres for raw in rest[:c]],
            log_scale=[
                (raw + START_LOG_SCALE).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
                for raw in rest[c : 2 * c]
            ],
            slope={pair: torch.tanh(raw) for pair, raw in zip(pairs, rest[2 * c :], strict=True)},
        )

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-probability of the levels x, `[B]`."""
        components, x = self._components(params), x.contiguous()
        total = components.log_weight
        values: list[Tensor] = []
        for colour in range(self.channels):
            level = x[:, colour : colour + 1]  # [B, 1, H, W]
            location = components.location(colour, values)
            total = total + bin_log_prob(location, components.log_scale[colour], level)
            values.append(bin_centre(level))
        return torch.logsumexp(total, dim=1).flatten(1).sum(dim=1)

    def mean(self, params: Tensor) -> Tensor:
        """The mixture of the components' locations, each at the locations of earlier colours."""
        components = self._components(params)
        weight = components.log_weight.exp()
        values: list[Tensor] = []
        for colour in range(self.channels):
            values.append(components.location(colour, values))
        means = [(weight * value).sum(dim=1) for value in values]
        return as_share_of_255(torch.stack(means, dim=1))

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """Choose a component where the cumulative weights pass the first u, then each colour."""
        components = self._components(params)
        u = u.view(-1, 1 + self.channels, self.height, self.width)
        passed = components.log_weight.exp().cumsum(dim=1) <= u[:, :1]  # [B, K, H, W]
        chosen = passed.sum(dim=1, keepdim=True).clamp_max(self.mixtures - 1)
        levels: list[Tensor] = []
        values: list[Tensor] = []
        for colour in range(self.channels):
            location = components.location(colour, values).gather(1, chosen)
            log_scale = components.log_scale[colour].gather(1, chosen)
            level = draw_level(location, log_scale, u[:, 1 + colour : 2 + colour])
            levels.append(level)
            values.append(bin_centre(level))
        return torch.cat(levels, dim=1).to(torch.uint8)
