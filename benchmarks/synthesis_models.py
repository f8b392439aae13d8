"""The two models that `synthesis.py` compares, and how each draws a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pixelcnn import PixelCnn, of_size, parameter_count
from model import build_model
from model.config import preset
from model.contract import DensityModel
from service.engine.onnxruntime_engine import Engine


@dataclass(frozen=True)
class Peers:
    """The two models of comparable size."""

    trained: DensityModel  # as training has it, the inference network included
    vae: DensityModel  # folded, as it draws
    pixelcnn: PixelCnn
    device: torch.device

    @property
    def vae_parameters(self) -> int:
        """All of the VAE's, those of its inference network included."""
        return parameter_count(self.trained)

    @property
    def subpixels(self) -> int:
        """The sequential steps of the autoregressive model."""
        return self.vae.dims


def build_peers(name: str, parameters: int | None, device: torch.device) -> Peers:
    """The preset's VAE, and a PixelCNN with as many parameters, or with `parameters`."""
    torch.manual_seed(0)
    vae = build_model(preset(name))
    levels = 2 if vae.likelihood.kind == "bernoulli" else 256
    config = of_size(parameters or parameter_count(vae), vae.config.image_shape, levels)
    pixelcnn = PixelCnn(config).eval().requires_grad_(False)
    folded = vae.fold().requires_grad_(False)
    layout: Any = {"memory_format": torch.channels_last}
    return Peers(vae, folded.to(device, **layout), pixelcnn.to(device, **layout), device)


def products(peers: Peers) -> tuple[float, float]:
    """Multiplications of one drawn image: of the VAE, and of one pass of the PixelCNN."""
    with torch.inference_mode():
        with FlopCounterMode(display=False) as vae:
            draw_in_torch(peers, 1)()
        x = torch.zeros(1, *peers.vae.config.image_shape, device=peers.device)
        with FlopCounterMode(display=False) as pixelcnn:
            peers.pixelcnn(x)
    return vae.get_total_flops() / 2, pixelcnn.get_total_flops() / 2


def draw_in_torch(peers: Peers, batch: int) -> Callable[[], object]:
    """Draw a batch of images from the VAE, in torch."""
    model, device = peers.vae, peers.device
    temperature = torch.ones(batch, len(model.layout.groups), device=device)

    @torch.inference_mode()
    def draw() -> object:
        eps = torch.randn(batch, model.layout.dim, device=device)
        u = torch.rand(batch, model.likelihood.uniforms, device=device)
        return model.likelihood.draw(model.generate(eps, temperature), u)

    return draw


def draw_with_graph(engine: Engine, batch: int) -> Callable[[], object]:
    """Draw a batch of images with the exported graph."""
    shapes = {
        tensor.name: tensor.shape[1:] for tensor in engine.bundle.manifest.graphs["sample"].inputs
    }
    rng = np.random.default_rng(0)

    def draw() -> object:
        def rows(name: str) -> tuple[int, ...]:
            return (batch, *(int(n) for n in shapes[name]))

        return engine.run(
            "sample",
            {
                "eps": rng.standard_normal(rows("eps"), np.float32),
                "temperature": np.ones(rows("temperature"), np.float32),
                "u": rng.random(rows("u"), np.float32),
            },
        )

    return draw
