"""A small ladder of the CIFAR-10 shape with random weights, and the bundle that is exported of it.

Two stochastic layers at 16x16 and 8x8, two maps each; nothing in it was ever trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model import build_model
from model.config import ResnetVaeConfig
from model.layers import data_dependent_init
from model.resnet_vae import ResnetVae
from service.bundle import Bundle
from training.data import ImageData
from training.export.export import BundleDetails, export_bundle

CONFIG = ResnetVaeConfig(channels=8, z_channels=2, levels=(1, 1))
CALIBRATION_IMAGES = 12


def pixels(config: ResnetVaeConfig, n: int, seed: int = 0) -> np.ndarray:
    """Noise, uint8 ``[n, C, H, W]``."""
    return np.random.default_rng(seed).integers(0, 256, (n, *config.image_shape), np.uint8)


def ladder(config: ResnetVaeConfig) -> ResnetVae:
    """A model with weights as the initialisation on noise leaves them."""
    torch.manual_seed(0)
    model = build_model(config)
    x = model.likelihood.from_pixels(torch.from_numpy(pixels(config, 16)))
    with torch.no_grad(), data_dependent_init(model):
        model(x, torch.randn(16, model.layout.dim))
    return model.eval()


@dataclass(frozen=True)
class ExportedLadder:
    """The torch model, weight norm and all, and what was exported of it."""

    model: ResnetVae
    bundle: Bundle


def export_ladder(config: ResnetVaeConfig, out: Path, *, calibrated: bool) -> ExportedLadder:
    """Export to the directory `out`, with p-values against noise where `calibrated`."""
    model = ladder(config)
    data = ImageData(pixels(config, CALIBRATION_IMAGES, seed=9), "noise", "calibration")
    details = BundleDetails(name="ladder", description="For tests.")
    fit = ImageData(pixels(config, CALIBRATION_IMAGES, seed=8), "noise", "validation")
    given = {"calibration": data, "fit": fit} if calibrated else {"calibration": None}
    return ExportedLadder(model, export_bundle(model, out, details, **given))
