"""The check of a GPU, rehearsed on a CPU: every section runs, and none stops another."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine.hardware import cuda_driver_problem

pytestmark = pytest.mark.timeout(400)  # a service and a training step, beside others' tests
FILE = Path(__file__).parents[2] / "deploy" / "gpu_check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


def ran(check, tmp_path, tiny_bundle, *options):
    """Exit code and findings of a rehearsal."""
    out = tmp_path / "found.json"
    quick = ["--provider", "cpu", "--bundles", str(tiny_bundle), "--seconds", "0.01"]
    code = check.main([*quick, "--minutes", "5", "--json", str(out), *options])
    document = json.loads(out.read_text())
    assert document["exit_code"] == code
    return code, document["findings"]


@pytest.fixture(scope="module")
def rehearsal(check, tiny_bundle, tmp_path_factory):
    train = ["--train", "mnist", "--train-minutes", "0"]
    return ran(check, tmp_path_factory.mktemp("check"), tiny_bundle, *train)


def test_every_section_is_rehearsed(check, rehearsal):
    code, findings = rehearsal
    assert [f for f in findings if f["good"] is False] == []
    assert code == 0
    assert {f["section"] for f in findings} == set(check.SECTIONS)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("placement", "tiny: sessions"),
        ("parity", "tiny: score"),
        ("bytes", "tiny: one bucket, alone and in company"),
        ("faults", "out of memory, injected"),
        ("served", "tiny: hot swap under load"),
        ("served", "tiny: killed clients under load"),
    ],
)
def test_what_is_judged_without_a_gpu_too(rehearsal, section, what):
    (finding,) = [f for f in rehearsal[1] if (f["section"], f["what"]) == (section, what)]
    assert finding["good"] is True


def test_a_section_that_fails_stops_no_other(check, tmp_path, tiny_bundle, monkeypatch):
    def broken(_):
        raise RuntimeError("no such device")

    monkeypatch.setitem(check.SECTIONS, "placement", broken)
    code, findings = ran(check, tmp_path, tiny_bundle, "--only", "machine", "placement", "parity")
    assert code == 1
    assert [f["value"] for f in findings if f["good"] is False] == ["RuntimeError: no such device"]
    assert findings[-1]["section"] == "parity"


def test_a_wrong_answer_is_found(check, tmp_path, tiny_bundle, monkeypatch):
    run = check.CudaEngine.run
    monkeypatch.setattr(
        check.CudaEngine,
        "run",
        lambda self, operation, given: {
            name: array * array.dtype.type(1 + 1e-4 * (array.dtype.kind == "f"))
            for name, array in run(self, operation, given).items()
        },
    )
    code, findings = ran(check, tmp_path, tiny_bundle, "--only", "parity")
    assert code == 1
    assert "more than float32 does" in next(f["value"] for f in findings if f["good"] is False)


@pytest.mark.skipif(cuda_driver_problem() is None, reason="here is a GPU")
def test_without_a_gpu_the_reason_is_told(check, tmp_path, tiny_bundle):
    code, findings = ran(
        check, tmp_path, tiny_bundle, "--provider", "cuda", "--only", "machine", "placement"
    )
    assert code == 1
    reasons = [f["value"] for f in findings if f["good"] is False]
    assert "driver" in reasons[0]
    assert len(reasons) == 2, "placement was tried nevertheless"


def test_it_ends_within_its_minutes(tmp_path, tiny_bundle):
    out = tmp_path / "found.json"
    command = [sys.executable, str(FILE), "--provider", "cpu", "--bundles", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--minutes", "0.02", "--seconds", "600", "--only", "speed", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(out.read_text())["findings"][-1]["what"] == "out of time"
