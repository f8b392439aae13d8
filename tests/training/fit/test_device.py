"""Which device a name stands for, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.config import Runtime
from training.errors import TrainingError
from training.fit import device
from training.fit.device import choose_device, prepare


def test_auto_is_a_device_that_is_there() -> None:
    assert torch.zeros(1, device=choose_device("auto")).item() == 0
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "", "cpu:0 "])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(TrainingError, match="auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="use --device cpu"):
        choose_device("cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match="no cuda:7"):
        choose_device("cuda:7")


@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_compiling_is_left_out_where_something_is_missing_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    if missing == "compiler":
        monkeypatch.setattr(device.shutil, "which", lambda _: None)
    else:  # Debian's python3 without python3-dev
        monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(tmp_path))
    model = torch.nn.Linear(1, 1)
    auto = prepare(Runtime(device="cpu", compile="auto"))
    assert auto.compile(model, 10**6) is model
    wanted = prepare(Runtime(device="cpu", compile="on"))
    with pytest.raises(TrainingError, match=f"{missing}.*install it, or use off"):
        wanted.compile(model, 10**6)
