"""How the rows of a reproduction share the time: equal minutes, or equal steps, in turns.

A plan is a pure function of where the rows stand, so that an interrupted call goes on by asking
again. The row that is furthest behind goes next, for one slice: whenever a call ends, the rows
have come about equally far.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.config import require
from training.config import UNENDING_EPOCHS, RunConfig

__all__ = ["EqualMinutes", "EqualSteps", "Plan", "Slice", "Standing", "plan_for", "water_level"]

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
class Plan(ABC):
    """How long the rows are trained. `budget_minutes` is shared by all of this call (None: none).

    `slice_minutes` is the longest that one row trains while the others wait.
    """

    budget_minutes: float | None = None
    slice_minutes: float = 10.0

    def __post_init__(self) -> None:
        budget = self.budget_minutes
        require(
            budget is None or 0 <= budget < math.inf,
            f"--budget-minutes must be finite and >= 0, not {budget}",
        )
        require(
            LEAST_MINUTES <= self.slice_minutes < math.inf,
            f"--slice-minutes must be finite and at least 0.005, not {self.slice_minutes}",
        )

    @abstractmethod
    def configured(self, config: RunConfig) -> RunConfig:
        """The row's run, as long as this plan makes it."""

    @abstractmethod
    def describe(self) -> str:
        """In words, for the report."""

    @property
    def ceiling(self) -> float:
        """The minutes after which a run has enough."""
        return math.inf

    def remaining(self, standings: Sequence[Standing]) -> list[Standing]:
        """The runs that are not as far as the plan wants them."""
        ceiling = self.ceiling
        return [s for s in standings if not s.done and ceiling - s.minutes >= LEAST_MINUTES]

    def next_slice(self, standings: Sequence[Standing], used: float) -> Slice | None:
        """What to train next, `used` minutes of the budget being spent; None: nothing.

        The budget lifts the runs that are behind to one level of minutes; the lowest goes first.
        """
        runs = self.remaining(standings)
        if not runs:
            return None
        left = math.inf if self.budget_minutes is None else max(0.0, self.budget_minutes - used)
        level = min(self.ceiling, water_level([run.minutes for run in runs], left))
        least = min(runs, key=lambda run: run.minutes)
        if level - least.minutes < LEAST_MINUTES:
            return None
        if math.isinf(level) and len(runs) == 1:  # nobody waits for the last one
            return Slice(least.key, None)
        return Slice(least.key, min(self.slice_minutes, level - least.minutes))


@dataclass(frozen=True, kw_only=True)
class EqualMinutes(Plan):
    """Every row gets `row_minutes` minutes of training.

    The learning rate stays constant after its warm-up, for a schedule that falls needs to know
    the last step; what is measured are averaged weights (EMA), which settle without it.
    """

    row_minutes: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            LEAST_MINUTES <= self.row_minutes < math.inf,
            f"--row-minutes must be finite and at least 0.005, not {self.row_minutes}",
        )

    def configured(self, config: RunConfig) -> RunConfig:
        """See the base class."""
        return replace(
            config,
            optim=replace(config.optim, schedule="constant"),
            train=replace(config.train, epochs=UNENDING_EPOCHS),
        )

    def describe(self) -> str:
        """See the base class."""
        return f"{self.row_minutes:g} minutes each at a constant learning rate"

    @property
    def ceiling(self) -> float:
        """See the base class."""
        return self.row_minutes


@dataclass(frozen=True, kw_only=True)
class EqualSteps(Plan):
    """Every row is trained for `epochs` epochs (None: its preset's), by its preset's schedule.

    While they are on the way rows are kept at equal minutes.
    """

    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.epochs is None or self.epochs >= 1,
            f"--epochs must be at least 1, not {self.epochs}",
        )

    def configured(self, config: RunConfig) -> RunConfig:
        """See the base class."""
        if self.epochs is None:
            return config
        return replace(config, train=replace(config.train, epochs=self.epochs))

    def describe(self) -> str:
        """See the base class."""
        return "as long as the preset" if self.epochs is None else f"{self.epochs} epochs each"


def plan_for(
    *,
    epochs: int | None,
    row_minutes: float | None,
    budget_minutes: float | None,
    slice_minutes: float,
) -> Plan:
    """The plan that the options ask for; raises `ConfigError` where they contradict each other."""
    require(
        epochs is None or row_minutes is None,
        "--epochs makes the rows' steps equal and --row-minutes their minutes: give one of them",
    )
    if row_minutes is None:
        return EqualSteps(epochs=epochs, budget_minutes=budget_minutes, slice_minutes=slice_minutes)
    return EqualMinutes(
        row_minutes=row_minutes, budget_minutes=budget_minutes, slice_minutes=slice_minutes
    )
