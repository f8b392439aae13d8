"""The service loads no torch, and the contract of bundles loads nothing of the service's
packages.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "model",
    "training",
    "onnx",
    "onnxscript",
    "matplotlib",
    "safetensors",
    "openvino",
)
CHECK = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
found = sorted(set(sys.argv[3].split(",")) & set(sys.modules))
sys.exit("imports " + ", ".join(found) if found else 0)
"""


def loads(module: str, forbidden: tuple[str, ...], path: Path = ROOT) -> str:
    """What importing `module` in a fresh interpreter loads of `forbidden`, or "" for nothing."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(path), module, ",".join(forbidden)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("module", ["service.app", "service.cli.main", "service.operations.model"])
def test_the_service_loads_no_torch(module):
    assert loads(module, HEAVY) == ""


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("service.bundle", (*HEAVY, "onnxruntime", "fastapi", "PIL")),
        (
            "service.scheduler.scheduler",
            (*HEAVY, "onnxruntime", "pydantic", "fastapi", "prometheus_client"),
        ),
        ("service.engine.onnxruntime_engine", (*HEAVY, "fastapi", "asyncio")),
        ("service.cli.local", (*HEAVY, "fastapi", "starlette", "uvicorn")),
    ],
)
def test_the_core_loads_only_what_it_needs(module, forbidden):
    assert loads(module, forbidden) == ""


def test_a_planted_violation_is_found(tmp_path):
    """The check itself: a module that imports torch deep inside must not pass."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text("")
    (tmp_path / "planted" / "app.py").write_text("from planted import deep\n")
    (tmp_path / "planted" / "deep.py").write_text("def f():\n    import torch\nf()\n")
    (tmp_path / "torch.py").write_text("")  # stands for the real one, which takes seconds
    assert loads("planted.app", HEAVY, tmp_path) == "imports torch"


def test_a_module_that_fails_to_import_does_not_pass(tmp_path):
    (tmp_path / "broken_app.py").write_text("raise ImportError('no')\n")
    assert "no" in loads("broken_app", HEAVY, tmp_path)
