"""How the rows of a reproduction share the time: equal minutes, or equal steps, in turns.

A plan is a pure function of where the rows stand, so that an interrupted call goes on by asking
again. The row that is furthest behind goes next, for one slice: whenever a call ends, the rows
have come about equally far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.config import require
from training.config import UNENDING_EPOCHS, RunConfig

__all__ = ["Plan", "Slice", "Standing", "water_level"]

# What is left below it, a third of a second, is not worth a start.
LEAST_MINUTES = 0.005


@dataclass(frozen=True)
class Standing:
    """How far a run has come: minutes of training, and whether its last step is done."""

    key: str
    minutes: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Slice:
    """The next piece of work: which run, for how many minutes (None: to its last step)."""

    key: str
    minutes: float | None


def water_level(minutes: Sequence[float], budget: float) -> float:
    """The level to which `budget` minutes lift the lowest of `minutes`, as water fills a basin.

    sum_i max(0, level - minutes_i) = budget.
    """
    lowest = sorted(minutes)
    for i in range(1, len(lowest)):
        needed = i * lowest[i] - sum(lowest[:i])
        if needed >= budget:
            return (budget + sum(lowest[:i])) / i
    return (budget + sum(lowest)) / len(lowest) if lowest else 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long the rows are trained: `epochs` epochs each, or `row_minutes` minutes each.

    By epochs (None: the preset's) a row has its preset's schedule, and while they are on the way
    rows are kept at equal minutes. By minutes the learning rate stays constant after its warm-up,
    for a schedule that falls needs to know the last step; what is measured are averaged weights
    (EMA), which settle without it. `budget_minutes` is shared by all rows of this call (None: no
    end), `slice_minutes` the longest that one row trains while the others wait. Raises
    `ConfigError` for what contradicts itself.
    """

    epochs: int | None = None
    row_minutes: float | None = None
    budget_minutes: float | None = None
    slice_minutes: float = 10.0

    def __post_init__(self) -> None:
        require(
            self.epochs is None or self.row_minutes is None,
            "--epochs makes the rows' steps equal and --row-minutes their minutes: give one of "
            "them",
        )
        require(
            self.epochs is None or self.epochs >= 1,
            f"--epochs must be at least 1, not {self.epochs}",
        )
        for option, minutes, least in (
            ("--budget-minutes", self.budget_minutes, 0),
            ("--row-minutes", self.row_minutes, LEAST_MINUTES),
            ("--slice-minutes", self.slice_minutes, LEAST_MINUTES),
        ):
            require(
                minutes is None or least <= minutes < math.inf,
                f"{option} must be finite and at least {least}, not {minutes}",
            )

    def configured(self, config: RunConfig) -> RunConfig:
        """The row's run, as long as this plan makes it."""
        if self.row_minutes is not None:
            optim = replace(config.optim, schedule="constant")
            train = replace(config.train, epochs=UNENDING_EPOCHS)
            return replace(config, optim=optim, train=train)
        if self.epochs is not None:
            return replace(config, train=replace(config.train, epochs=self.epochs))
        return config

    def describe(self) -> str:
        """In words, for the report."""
        if self.row_minutes is not None:
            return f"{self.row_minutes:g} minutes each at a constant learning rate"
        return "as long as the preset" if self.epochs is None else f"{self.epochs} epochs each"

    @property
    def enough(self) -> float:
        """The minutes after which a run has enough."""
        return math.inf if self.row_minutes is None else self.row_minutes

    def remaining(self, standings: Sequence[Standing]) -> list[Standing]:
        """The runs that are not as far as the plan wants them."""
        return [s for s in standings if not s.done and self.enough - s.minutes >= LEAST_MINUTES]

    def next_slice(self, standings: Sequence[Standing], used: float) -> Slice | None:
        """What to train next, `used` minutes of the budget being spent; None: nothing.

        The budget lifts the runs that are behind to one level of minutes; the lowest goes first.
        """
        runs = self.remaining(standings)
        if not runs:
            return None
        left = math.inf if self.budget_minutes is None else max(0.0, self.budget_minutes - used)
        level = min(self.enough, water_level([run.minutes for run in runs], left))
        least = min(runs, key=lambda run: run.minutes)
        if level - least.minutes < LEAST_MINUTES:
            return None
        if math.isinf(level) and len(runs) == 1:  # nobody waits for the last one
            return Slice(least.key, None)
        return Slice(least.key, min(self.slice_minutes, level - least.minutes))
