"""What operations demand of their arguments. Each raises an error that names the argument."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.bundle import LatentSpec
from service.errors import InvalidInput, NonFiniteInput, PayloadTooLarge, WrongDtype, WrongShape

__all__ = [
    "MAX_SEED",
    "alpha",
    "at_most",
    "count",
    "drawn_seed",
    "latents",
    "output",
    "seed",
    "temperature",
    "two_ends",
]

MAX_SEED = 2**63 - 1  # the noise could take twice as many; protocols know signed numbers alone
DRAWN_SEEDS = 2**53  # seeds that are drawn here survive JavaScript's numbers
MAX_FLOAT32 = float(np.finfo(np.float32).max)
O = TypeVar("O", bound=str)  # noqa: E741


def count(name: str, value: int, least: int = 1) -> int:
    """`value` if it is at least `least`."""
    if value < least:
        raise InvalidInput(f"{name} must be at least {least}, not {value}")
    return value


def at_most(name: str, value: int, limit: int) -> None:
    """Raises PayloadTooLarge where `value` is above `limit`."""
    if value > limit:
        raise PayloadTooLarge(f"{name}: {value} is above the limit of {limit}; ask for fewer")


def seed(value: int) -> int:
    """`value` if it is a 63-bit number."""
    if not 0 <= value <= MAX_SEED:
        raise InvalidInput(f"seed must be from 0 to {MAX_SEED}, not {value}")
    return value


def drawn_seed() -> int:
    """A random seed, for a request that gives none."""
    return secrets.randbelow(DRAWN_SEEDS)


def alpha(value: float, name: str = "alpha") -> float:
    """`value` if it lies between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise InvalidInput(f"{name} must be between 0 and 1, not {value}")
    return value


def output(value: O) -> O:
    """`value` if it is a kind of pixels."""
    if value not in {"mean", "draw"}:
        raise InvalidInput(f'output must be "mean" or "draw", not {value!r}')
    return value


def temperature(given: float | Sequence[float], latent: LatentSpec) -> list[float]:
    """One number for each group of `latent`, finite and not negative; a single one is for all."""
    names = [group.name for group in latent.groups]
    if isinstance(given, float | int):
        numbers = [float(given)] * len(names)
    else:
        numbers = [float(value) for value in given]
    if len(numbers) != len(names):
        raise InvalidInput(
            f"temperature is a single number or one for each latent group ({', '.join(names)}), "
            f"not {len(numbers)} of them"
        )
    for number in numbers:
        if not math.isfinite(number):
            raise NonFiniteInput(f"temperature must be finite, not {number}")
        if not 0.0 <= number <= MAX_FLOAT32:
            raise InvalidInput(f"temperature must not be negative or beyond float32, not {number}")
    return numbers


def latents(array: NDArray[Any], dim: int, name: str = "latents") -> None:
    """Float32 ``[n, dim]``, n at least 1, finite."""
    if array.dtype != np.float32:
        raise WrongDtype(f"{name} must be float32, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] != dim:
        raise WrongShape(f"{name} must have the shape [n, {dim}], not {list(array.shape)}")
    count(f"the number of {name}", len(array))
    if not np.isfinite(array).all():
        raise NonFiniteInput(f"{name} must be finite float32 numbers: they hold NaN or infinity")


def two_ends(images: NDArray[Any] | None, seeds: Sequence[int]) -> None:
    """Two of `images` and `seeds` together."""
    given = 0 if images is None else len(images)
    if given + len(seeds) != 2:
        raise InvalidInput(
            "an interpolation goes between two images, two seeds, or one of each, not "
            f"{given} images and {len(seeds)} seeds"
        )
