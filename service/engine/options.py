"""What an operator can choose of what computes; imports nothing, so that `--help` answers at
once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["EngineOptions", "Form", "Provider"]

Provider = Literal["auto", "cpu", "cuda"]
Form = Literal["portable", "cpu"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What computes, and within which limits.

    provider: ``auto`` uses CUDA where it really works, ``cuda`` demands it (ProviderUnavailable
    otherwise), ``cpu`` never tries; threads: of one run on CPU; max_rows: largest batch, None for
    the engine's default; form: which of a bundle's graphs, None for the provider's; device: which
    GPU, as CUDA counts them; gpu_rows: a GPU's default of `max_rows`; gpu_bucket: the one size to
    which a GPU's batches are padded, None for a few sizes.
    """

    provider: Provider = "auto"
    threads: int = 1
    max_rows: int | None = None
    form: Form | None = None
    device: int = 0
    gpu_rows: int = 256
    gpu_bucket: int | None = None
