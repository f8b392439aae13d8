"""What a run tells where no terminal shows its bar."""

from __future__ import annotations

import io
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.fit import progress
from training.fit.progress import Budget

FIGURES = {"elbo_nats": -100.0, "kl_nats": 9.0, "bits_per_dim": 2.5, "images_per_second": 32.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


@contextmanager
def telling(console: Console):
    budget = Budget(30.0)
    budget.begin()
    recorder = SimpleNamespace(write=lambda *given: None)
    with progress.shown(
        console, recorder, total_steps=None, step=0, epochs=None, budget=budget
    ) as observer:
        yield observer


def test_a_long_epoch_tells_how_far_it_is_once_a_minute(clock: SimpleNamespace) -> None:
    said = io.StringIO()
    with telling(Console(file=said, width=40)) as observer:
        for step in range(10, 130, 10):
            clock.now += 20
            observer.train(step, FIGURES)
        observer.validation(130, 1, FIGURES)
        clock.now += 59
        observer.train(140, FIGURES)
    figures = "ELBO -100.00 nats  KL 9.00  2.5000 bits/dim  (32 images/s, {} min left)"
    assert said.getvalue().splitlines() == [
        *(f"step {s}  {figures.format(m)}" for s, m in ((30, 29), (60, 28), (90, 27), (120, 26))),
        f"epoch 1  validation {figures.format(26)}",
    ]


def test_a_bar_needs_no_lines(clock: SimpleNamespace) -> None:
    said = io.StringIO()
    with telling(Console(file=said, force_terminal=True, width=120)) as observer:
        clock.now += 600
        observer.train(10, FIGURES)
    assert "step 10  ELBO" not in said.getvalue()
