"""The check of a GPU, rehearsed on a CPU: every section runs, and none stops another."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import psutil
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
    code = check.main([*quick, "--minutes", "6", "--json", str(out), *options])
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
        ("served", "tiny: out of memory under load"),
    ],
)
def test_what_is_judged_without_a_gpu_too(rehearsal, section, what):
    (finding,) = [f for f in rehearsal[1] if (f["section"], f["what"]) == (section, what)]
    assert finding["good"] is True


def break_parity(check, tmp_path, monkeypatch, fault):
    """Have the section `parity` do something else."""
    broken, head = tmp_path / "broken.py", "def parity(check: Check) -> None:\n"
    text = FILE.read_text()
    broken.write_text(text.replace("SECTIONS: dict", f"{head}    {fault}\n\n\nSECTIONS: dict"))
    monkeypatch.setattr(check, "__file__", str(broken))
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    return broken


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise RuntimeError('no such device')", "RuntimeError: no such device"),
        ("os.kill(os.getpid(), 9)", "its process ended with -9"),
        ("os._exit(1)", "its process ended with 1"),
    ],
)
def test_a_section_that_fails_stops_no_other(
    check, tmp_path, tiny_bundle, monkeypatch, fault, told
):
    """Nor one whose process dies, as of a fault in a library, with or without a word."""
    break_parity(check, tmp_path, monkeypatch, fault)
    code, findings = ran(check, tmp_path, tiny_bundle, "--only", "machine", "parity", "placement")
    assert code == 1
    assert [f["value"] for f in findings if f["good"] is False] == [told]
    assert {f["section"] for f in findings} == {"machine", "parity", "placement"}


def test_a_section_that_dies_leaves_nobody_behind(check, tmp_path, tiny_bundle, monkeypatch):
    """A service of its own, or who holds the device's memory, would spoil the next ones."""
    number = tmp_path / "pid"
    leave = "p = subprocess.Popen(['sleep', '600']); "
    note = f"Path({str(number)!r}).write_text(str(p.pid)); os.kill(os.getpid(), 9)"
    break_parity(check, tmp_path, monkeypatch, leave + note)
    ran(check, tmp_path, tiny_bundle, "--only", "parity", "machine")
    with contextlib.suppress(psutil.NoSuchProcess):  # where nobody collects the dead it stays
        assert psutil.Process(int(number.read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_section_that_hangs_leaves_time_to_the_others(check, tmp_path, tiny_bundle, monkeypatch):
    """Also where its own timer does not run, as in a call of a library that does not come back."""
    broken = break_parity(check, tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGSTOP)")
    out = tmp_path / "found.json"
    command = [sys.executable, str(broken), "--provider", "cpu", "--bundles", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--minutes", "0.6", "--json", str(out), "--only", "parity", "machine"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    findings = json.loads(out.read_text())["findings"]
    assert [f["what"] for f in findings if f["section"] == "parity"] == ["out of time"]
    assert "machine" in {f["section"] for f in findings}


def test_a_bundle_that_cannot_be_read_is_a_finding_of_who_needs_it(check, tmp_path):
    code, findings = ran(check, tmp_path, tmp_path / "none", "--only", "machine", "placement")
    assert code == 1
    (bad,) = [f for f in findings if f["good"] is False]
    assert bad["section"] == "placement"
    assert "BundleError" in bad["value"]


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


def test_a_drawn_image_that_differs_is_found(check, tmp_path, tiny_bundle, monkeypatch):
    run = check.CudaEngine.run
    monkeypatch.setattr(
        check.CudaEngine,
        "run",
        lambda self, operation, given: {
            name: 255 - array if array.dtype == "uint8" else array
            for name, array in run(self, operation, given).items()
        },
    )
    code, findings = ran(check, tmp_path, tiny_bundle, "--only", "parity")
    assert code == 1
    assert "of draw differs" in next(f["value"] for f in findings if f["good"] is False)


def test_each_section_loads_the_libraries(check, tiny_bundle, monkeypatch):
    """Whichever is run alone: CUDA's libraries are there because somebody has asked."""
    asked = []
    monkeypatch.setattr(check, "gpu_problem", asked.append)
    check.Check(check.arguments(["--bundles", str(tiny_bundle), "--device", "2"]))
    assert asked == [2]


def test_the_device_is_asked_for_by_the_name_that_it_has_outside(check, tiny_bundle, monkeypatch):
    """nvidia-smi counts every device, CUDA those that it is shown."""
    seen = []

    def run(command, **_):
        seen.append(command[-1])
        return subprocess.CompletedProcess(command, 0, "7\n", "")

    monkeypatch.setattr(check.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(check.subprocess, "run", run)
    monkeypatch.setattr(check, "gpu_problem", lambda _: None)
    made = check.Check(check.arguments(["--bundles", str(tiny_bundle), "--device", "1"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f6a")
    assert check.smi(made, "memory.used") == "7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    check.smi(made, "memory.used")
    assert seen == ["--id=GPU-8f6a", "--id=1"]


@pytest.mark.skipif(cuda_driver_problem() is None, reason="here is a GPU")
def test_without_a_gpu_the_reason_is_told(check, tmp_path, tiny_bundle):
    code, findings = ran(
        check, tmp_path, tiny_bundle, "--provider", "cuda", "--only", "machine", "placement"
    )
    assert code == 1
    reasons = [f["value"] for f in findings if f["good"] is False]
    assert "driver" in reasons[0]
    assert len(reasons) == 2, "placement was tried nevertheless"


FULL = """
import os, onnxruntime

made = onnxruntime.InferenceSession

def scarce(*given, **named):
    if os.path.exists({file!r}):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1073741824")
    return made(*given, **named)

onnxruntime.InferenceSession = scarce
"""


def test_a_version_for_which_there_is_no_room_is_met(check, tmp_path, tiny_bundle, monkeypatch):
    """What a full device does, injected: the service refuses it, goes on, and takes it later."""
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FULL.format(file=str(full)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    @contextlib.contextmanager
    def crowd(_):
        full.touch()
        yield
        full.unlink()

    monkeypatch.setattr(check, "crowd", crowd)
    made = check.Check(check.arguments(["--provider", "cpu", "--bundles", str(tiny_bundle)]))
    with check.Server(made, made.bundles[0]) as server:
        found = server.crowded_under_load(made, 8)
    assert found == ("no room, then swapped, 0 refused", "swapped", True)


@pytest.mark.parametrize("sections", [["speed"], ["machine", "speed"]])
def test_it_ends_within_its_minutes(tmp_path, tiny_bundle, sections):
    out = tmp_path / "found.json"
    command = [sys.executable, str(FILE), "--provider", "cpu", "--bundles", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--minutes", "0.1", "--seconds", "600", "--json", str(out), "--only", *sections],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(out.read_text())["findings"][-1]["what"] == "out of time"


def test_it_ends_where_its_findings_cannot_be_written(tmp_path, tiny_bundle):
    command = [sys.executable, str(FILE), "--provider", "cpu", "--bundles", str(tiny_bundle)]
    out = tmp_path / "missing" / "found.json"
    done = subprocess.run(
        [*command, "--minutes", "0.02", "--seconds", "600", "--only", "speed", "--json", str(out)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
