"""What surrounds the optimiser: the guard of its steps, the average, and the schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config import OptimConfig, TrainConfig
from training.errors import TrainingError
from training.fit.optim import (
    DIVERGED_AFTER,
    ESCAPE_AFTER,
    NORM_SETTLED,
    Ema,
    StepGuard,
)
from training.schedules import kl_weight_at, learning_rate_at


def test_the_guard_skips_explosions_but_accepts_a_new_level() -> None:
    guard = StepGuard(10.0)
    assert all(guard.allows(1.0, 1.0) for _ in range(NORM_SETTLED))
    assert guard.allows(1.0, 9.0)
    assert not guard.allows(1.0, 1e6)
    assert guard.allows(1.0, 1.0)
    taken = [guard.allows(1.0, 1e6) for _ in range(ESCAPE_AFTER + 1)]
    assert taken == [False] * ESCAPE_AFTER + [True]
    assert guard.skipped_exploding == ESCAPE_AFTER + 1
    assert all(guard.allows(1.0, norm) for norm in (1e6, 3e6, 1e6))  # the level is known now


def test_steps_without_a_gradient_are_no_new_level() -> None:
    guard = StepGuard(10.0)
    assert all(guard.allows(1.0, 1.0) for _ in range(NORM_SETTLED))
    assert not any(guard.allows(float("nan"), 1.0) for _ in range(ESCAPE_AFTER))
    assert not guard.allows(1.0, 1e30)
    assert guard.allows(1.0, 1.0)
    # Nor are explosions steps without a gradient.
    assert not any(guard.allows(1.0, 1e30) for _ in range(ESCAPE_AFTER))
    assert not any(guard.allows(float("nan"), 1.0) for _ in range(DIVERGED_AFTER - 1))
    with pytest.raises(TrainingError, match=f"^{DIVERGED_AFTER} steps"):
        guard.allows(float("nan"), 1.0)


def test_the_guard_gives_up_on_a_diverged_run() -> None:
    guard = StepGuard(10.0)
    assert not any(guard.allows(float("nan"), 1.0) for _ in range(DIVERGED_AFTER - 1))
    with pytest.raises(TrainingError, match="diverged"):
        guard.allows(float("nan"), 1.0)


def test_the_guards_state_round_trips() -> None:
    guard = StepGuard(10.0)
    guard.allows(1.0, 2.0)
    guard.allows(float("inf"), 2.0)
    guard.allows(1.0, 1e9)
    copy = StepGuard(10.0)
    copy.restore(guard.state())
    assert copy == guard
    older = {k: v for k, v in guard.state().items() if not k.endswith("in_a_row")}
    copy = StepGuard(10.0)
    copy.restore(older | {"in_a_row": 2})
    assert (copy.taken, copy.exploding_in_a_row) == (guard.taken, 0)


def test_the_average_follows_the_parameters() -> None:
    model, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    average.load_state_dict(model.state_dict())
    ema = Ema(model, average, 0.9)
    start, moved = model.weight.detach().clone(), model.weight.detach() + 1
    model.weight.data.copy_(moved)
    ema.update(10_000)
    torch.testing.assert_close(average.weight.detach(), 0.9 * start + 0.1 * moved)


def test_early_averages_forget_where_they_began() -> None:
    """The weight of the newest parameters is 9 / (10 + t), until it is as small as 1 - decay."""
    for done, weight in ((1, 9 / 11), (8, 0.5), (80, 0.1), (81, 0.1)):
        model, average = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        model.weight.data.fill_(1.0)
        average.weight.data.fill_(0.0)
        Ema(model, average, 0.9).update(done)
        assert average.weight.item() == pytest.approx(weight, rel=1e-5)


def test_a_guard_of_zero_takes_every_finite_step() -> None:
    guard = StepGuard(0.0)
    assert all(guard.allows(1.0, 10.0**power) for power in [0] * NORM_SETTLED + [9, 20])
    assert not guard.allows(1.0, float("inf"))


def test_schedules() -> None:
    trapezoid = OptimConfig(
        learning_rate=1.0, warmup_steps=10, schedule="trapezoid", decay_fraction=0.5
    )
    rates = [learning_rate_at(trapezoid, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03
    # Lengthening the run changes nothing before the fall begins.
    assert [learning_rate_at(trapezoid, step, 200) for step in range(50)] == rates[:50]
    # A short run is not spent on warming up.
    long_warmup = replace(trapezoid, warmup_steps=400)
    assert [learning_rate_at(long_warmup, step, 50) for step in (0, 4, 5)] == [0.2, 1.0, 1.0]
    cosine = replace(trapezoid, schedule="cosine")
    assert learning_rate_at(cosine, 55, 100) == pytest.approx(0.5)
    assert learning_rate_at(replace(trapezoid, schedule="constant"), 99, 100) == 1.0


def test_kl_warm_up_is_linear_and_ends_at_one() -> None:
    config = TrainConfig(kl_warmup_epochs=2.0, kl_warmup_start=0.2)
    assert kl_weight_at(config, 0, 10) == pytest.approx(0.2)
    assert kl_weight_at(config, 10, 10) == pytest.approx(0.6)
    assert kl_weight_at(config, 20, 10) == 1.0
    assert kl_weight_at(TrainConfig(kl_warmup_epochs=0.0), 0, 10) == 1.0
