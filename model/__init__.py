"""The density model: torch modules and log-densities, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.contract import DensityModel

__all__ = ["build_model"]


def build_model(config: ModelConfig) -> DensityModel:
    """Build the model that `config` describes, freshly initialised from torch's generator."""
    # These import torch, which who reads a configuration need not.
    from model.bottom_up import BottomUpVae
    from model.config import ConvVaeConfig
    from model.conv_vae import ConvVae
    from model.resnet_vae import BidirectionalVae

    if isinstance(config, ConvVaeConfig):
        return ConvVae(config)
    ladders = {"bidirectional": BidirectionalVae, "bottom_up": BottomUpVae}
    return ladders[config.inference](config)
