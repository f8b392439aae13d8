"""The density model: torch modules and log-densities, nothing else."""

from __future__ import annotations

from model.config import ModelConfig
from model.contract import DensityModel
from model.conv_vae import ConvVae

__all__ = ["build_model"]


def build_model(config: ModelConfig) -> DensityModel:
    """Build the model that `config` describes, freshly initialised from torch's generator."""
    return ConvVae(config)
