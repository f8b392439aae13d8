"""A small convolutional model with random weights, and the bundle that is exported of it.

Images of 1x8x8, sixteen latents, a flow of two steps; nothing in it was ever trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig, IafPosterior
from model.conv_vae import ConvVae
from service.bundle import Bundle
from training.data import ImageData
from training.export import export
from training.export.findings import Findings
from training.export.graphs import Graphs, build_graphs, graph_modules

SHAPE = (1, 8, 8)
DETAILS = export.BundleDetails(
    name="tiny",
    description="For tests.",
    training={"epochs": 3},
    findings=Findings(curve="An hour.", pictures={"curve.png": b"a picture"}),
)


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """Noise, uint8 ``[n, 1, 8, 8]``."""
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)


def conv_model(**changes: Any) -> ConvVae:
    """The model; `changes` replace fields of its configuration."""
    torch.manual_seed(0)
    config = ConvVaeConfig(
        image_shape=SHAPE,
        channels=(16,),
        hidden=18,
        latent_dim=16,
        posterior=IafPosterior(steps=2, hidden=(16, 16)),
    )
    model = build_model(replace(config, **changes)).eval()
    with torch.no_grad():  # away from zero biases, gains of one and a posterior like the prior
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@dataclass(frozen=True)
class ExportedConv:
    """The torch model, the graphs it became, and what was published of them."""

    model: ConvVae
    graphs: Graphs
    bundle: Bundle


def export_conv(out: Path) -> ExportedConv:
    """Export to the directory `out`, with p-values against noise and examples of it."""
    model = conv_model()
    graphs = build_graphs(graph_modules(model.fold()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "build_graphs", lambda _: graphs)
        bundle = export.export_bundle(
            model,
            out,
            DETAILS,
            calibration=ImageData(pixels(40), "mnist", "calibration"),
            fit=ImageData(pixels(30, seed=2), "mnist", "validation"),
            examples=ImageData(pixels(9, seed=1), "mnist", "test"),
        )
    return ExportedConv(model, graphs, bundle)
