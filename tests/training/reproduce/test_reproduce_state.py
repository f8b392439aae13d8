"""What a run's directory tells of how far it has come, whatever happened to the program."""

from __future__ import annotations

import json

import pytest

from training.files import read_lines, write_lines
from training.reproduce.state import (
    checkpoint_step,
    progressed,
    read_slices,
    record_slice,
)
from training.runs.metrics import minutes_clock

BATCH = 60


def metric(step, speed, kind="train"):
    return {"step": step, "kind": kind, "images_per_second": speed}


def point_at(run_dir, step):
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "latest").write_text(f"step-{step:08d}\n")


def record(first, step, minutes, *, reason="budget", epochs=5, machine="one"):
    return {
        "first_step": first,
        "step": step,
        "epochs": epochs,
        "steps_per_epoch": 10,
        "reason": reason,
        "minutes": minutes,
        "machine": machine,
    }


def test_minutes_are_steps_times_images_by_the_recorded_speeds():
    records = [metric(10, 60.0), metric(15, 10.0, "validation"), metric(20, 30.0)]

    def step_minutes(first, last, records=records):
        clock = minutes_clock(records, BATCH)
        return clock(last) - clock(first)

    assert step_minutes(0, 20) == pytest.approx((10 + 20) / 60)
    assert step_minutes(5, 20) == pytest.approx((5 + 20) / 60)
    assert step_minutes(0, 15) == pytest.approx((10 + 10) / 60)
    assert step_minutes(0, 24) == pytest.approx((10 + 20 + 8) / 60)
    assert step_minutes(24, 24) == 0
    for untold in ([], [metric(10, None)]):
        assert step_minutes(0, 24, untold) == 0


def test_a_run_that_never_was_has_come_nowhere(tmp_path):
    assert checkpoint_step(tmp_path) == 0
    so_far = progressed(tmp_path, BATCH)
    assert (so_far.step, so_far.minutes, so_far.machines, so_far.done_epochs) == (0, 0, (), 0)


def test_slices_add_up_and_name_their_machines(tmp_path):
    for first, step, machine in ((0, 10, "one"), (10, 30, "two"), (30, 50, "one")):
        record_slice(tmp_path, **record(first, step, 1.5, machine=machine))
    point_at(tmp_path, 50)
    so_far = progressed(tmp_path, BATCH)
    assert so_far.minutes == 4.5
    assert so_far.machines == ("one", "two")
    assert so_far.done_epochs == 0
    assert progressed(tmp_path, BATCH, step=30).minutes == 3.0


def test_what_a_killed_call_trained_counts_by_its_speeds(tmp_path):
    record_slice(tmp_path, **record(0, 10, 1.0))
    lines = [metric(10, 60.0), metric(20, 30.0), metric(30, 30.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    point_at(tmp_path, 20)  # the checkpoint is older than the last record
    assert progressed(tmp_path, BATCH).minutes == pytest.approx(1.0 + 20 / 60)


def test_a_run_is_done_for_as_many_epochs_as_it_was_to_be(tmp_path):
    record_slice(tmp_path, **record(0, 50, 1.0, reason="done"))
    point_at(tmp_path, 50)
    assert progressed(tmp_path, BATCH).done_epochs == 5
    point_at(tmp_path, 40)  # the newest checkpoint was lost
    assert progressed(tmp_path, BATCH).done_epochs == 0


def test_slices_of_steps_that_were_lost_are_dropped(tmp_path):
    record_slice(tmp_path, **record(0, 10, 1.0))
    record_slice(tmp_path, **record(10, 30, 2.0))
    record_slice(tmp_path, **record(10, 25, 1.5))  # taken up again at step 10
    assert [line["step"] for line in read_slices(tmp_path)] == [10, 25]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n[1]\n{"stop": 2}\n{"step": "3"}\n{"step": 4}\n{"ste')
    assert read_lines(path) == [{"step": 1}, {"step": 4}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_pointer_that_is_none_counts_as_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
    assert checkpoint_step(tmp_path) == 0
    (tmp_path / "checkpoints" / "latest").write_text("elsewhere")
    assert checkpoint_step(tmp_path) == 0


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "file"
    write_lines(path, [{"step": 1}, {"step": 2}])
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
