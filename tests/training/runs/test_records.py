"""metrics.jsonl after crashes: what is whole is kept, and no step stands twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.runs.metrics import METRICS_FILE, Recorder, read_metrics

SPOILT = b'{"step": 3, "kind": "tr' + b'{"step": 4, "kind": "train"}\n' + b"\xff\x00[]\nnull\n7\n\n"
BY_HAND = b'{"step": 1, "kind": "train", "images_per_second": "fast"}\n{"step": 1, "kind": 5}\n'


def test_what_a_crash_spoilt_is_passed_over_and_no_step_stands_twice(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "kind": "train", "elbo_nats": -s}) for s in (1, 2, 9)]
    (tmp_path / METRICS_FILE).write_bytes("\n".join(lines).encode() + b"\n" + BY_HAND + SPOILT)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 9]
    recorder = Recorder(tmp_path, 2)
    recorder.write(3, "train", {"elbo_nats": -3.0})
    recorder.close()
    records = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(record["step"], record["elbo_nats"]) for record in records] == [
        (1, -1),
        (2, -2),
        (3, -3),
    ]


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0)
    recorder.write(1, "skipped", {"neg_elbo_nats": float("nan"), "gradient_norm": float("inf")})
    recorder.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=refuse)["gradient_norm"] is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_told_with_the_file_s_name(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0)
    recorder.file.close()
    recorder.file = Path("/dev/full").open("a")  # noqa: SIM115
    for attempt in (lambda: recorder.write(1, "train", {}), recorder.close):
        with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
            attempt()
    recorder.board.close()


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
