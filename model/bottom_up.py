"""The ladder with bottom-up inference (paper, Appendix C.1, figure 5)."""

from __future__ import annotations

from torch import Tensor

from model.config import ResnetVaeConfig
from model.contract import Features, Inference
from model.ladder import Draw, LayerInference, joined, prior_of
from model.resnet_vae import ResnetVae


class BottomUpVae(ResnetVae):
    """Inference on the way up, z_1 first: q(z_l) depends on the image and the z below it.

    Each z joins the hidden maps of its layer's residual unit, so that the layers above see it;
    the way down then only tells how likely these z are under the prior. So a second sample
    for the same image shares with the first no more than the stem.
    """

    def __init__(self, config: ResnetVaeConfig) -> None:
        super().__init__(config, bidirectional=False)

    def bottom_up(self, x: Tensor) -> Features:
        """Give the stem's maps, `[B, h, H/2, W/2]`."""
        return (self._stem_maps(x),)

    def prior_data(self, features: Features, eps: Tensor) -> Tensor:
        """See `DensityModel`."""
        return self._top_standardised(self._way_up(features[0], eps)[0].z)

    def infer(self, features: Features, eps: Tensor) -> Inference:
        """See `DensityModel`."""
        draws = self._way_up(features[0], eps)
        h = self._top_state()
        layers: list[LayerInference] = []
        for spec, draw in zip(self.specs, draws, strict=True):
            layer = self._down(spec)
            parts = layer.parts(h)
            layers.append(
                self._posterior(spec).against_prior(draw, *prior_of(parts), self._prior(spec))
            )
            h = layer.residual(h, draw.z, parts["state"])
        return joined(layers, self.head(h))

    def _way_up(self, h: Tensor, eps: Tensor) -> list[Draw]:
        """Draw every layer's z from the bottom up; the draws from the top down."""
        draws: list[Draw] = []
        for spec, eps_l in reversed(list(self._groups(eps))):
            layer, posterior = self._up(spec), self._posterior(spec)
            parts = layer.parts(h)
            draws.append(posterior(parts["posterior"], eps_l))
            if not spec.top:
                h = layer.residual(h, draws[-1].z, parts["state"])
        return draws[::-1]
