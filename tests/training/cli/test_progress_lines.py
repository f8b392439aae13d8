"""Progress where no terminal shows it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from training.cli import measure


def test_long_work_tells_how_far_it_is_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: now))
    with measure.progress_bar() as progress:
        task = progress.add_task("scoring mnist", total=5000)
        for _ in range(40):  # 10 seconds each
            progress.advance(task, 100)
            now += 10
        now += 20
        progress.update(task, description="scoring cifar10", completed=4500)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        *(f"scoring mnist: {done:,} of 5,000" for done in (700, 1300, 1900, 2500, 3100, 3700)),
        "scoring cifar10: 4,500 of 5,000",
    ]
