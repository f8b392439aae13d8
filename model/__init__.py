"""The density model: torch modules and log-densities, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.contract import DensityModel

__all__ = ["build_model"]


def build_model(config: ModelConfig) -> DensityModel:
    """Build the model that `config` describes, freshly initialised from torch's generator."""
    from model.conv_vae import ConvVae  # imports torch, which who reads a configuration need not

    return ConvVae(config)
