"""What stands in for the options that a caller leaves out."""

from __future__ import annotations

import secrets

from service.bundle import LatentSpec
from service.errors import InvalidInput

__all__ = ["seed_or_drawn", "temperatures"]

DRAWN_SEEDS = 2**53  # seeds that are drawn here survive JavaScript's numbers


def seed_or_drawn(seed: int | None) -> int:
    """`seed`, or one that nobody has chosen."""
    return secrets.randbelow(DRAWN_SEEDS) if seed is None else seed


def temperatures(given: float | list[float], latent: LatentSpec) -> list[float]:
    """One number for each group of `latent`. Raises InvalidInput for another number of them."""
    names = [group.name for group in latent.groups]
    if not isinstance(given, list):
        return [given] * len(names)
    if len(given) != len(names):
        raise InvalidInput(
            f"temperature has {len(given)} numbers, the model has {len(names)} latent groups "
            f"({', '.join(names)}): give one for each, or a single number"
        )
    return given
