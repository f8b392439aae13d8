"""A checkpoint comes back bit for bit, and no fault takes the last good one away."""

import errno
import json
import logging
from pathlib import Path

import pytest
import torch

from service.bundle import writer
from training import files
from training.errors import CheckpointError
from training.runs import checkpoint as module
from training.runs.checkpoint import load_checkpoint, save_checkpoint


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "layer.weight": weight,
        "tied": weight,
        "column": weight[:, 1],
        "step": torch.tensor(step),
    }


def save(run, step):
    return save_checkpoint(
        run,
        step,
        model_state=tensors(step),
        ema_state={"layer.weight": torch.full((2,), float(step), dtype=torch.float64)},
        optim_tensors={"0.exp_avg": torch.ones(2, dtype=torch.bfloat16)},
        state={"epoch": step / 7, "skipped": [1, 2], "name": "né"},
    )


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_everything_comes_back_bit_for_bit(tmp_path):
    path = save(tmp_path, 12)
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 12
    assert loaded.path == path
    assert loaded.faults == ()
    assert loaded.state == {"epoch": 12 / 7, "skipped": [1, 2], "name": "né"}
    assert loaded.model.keys() == tensors(12).keys()
    for name, tensor in tensors(12).items():
        assert torch.equal(loaded.model[name], tensor)
    assert loaded.ema["layer.weight"].dtype == torch.float64
    assert loaded.optim["0.exp_avg"].dtype == torch.bfloat16
    assert load_checkpoint(path).step == 12


def test_the_newest_are_kept_and_the_pointer_names_the_last(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000003\n"
    save(tmp_path, 3)  # the same step once more
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003"]
    assert load_checkpoint(tmp_path).step == 3


def test_a_run_that_went_back_leaves_no_later_steps(tmp_path):
    for step in (100, 200):
        save(tmp_path, step)
    save(tmp_path, 150)
    assert names(tmp_path) == ["latest", "step-00000100", "step-00000150"]
    assert load_checkpoint(tmp_path).step == 150


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


FAULTS = {
    "flipped bit": lambda path: flip(path / "model.safetensors"),
    "cut short": lambda path: (path / "ema.safetensors").write_bytes(b"\1\2\3"),
    "missing file": lambda path: (path / "optim.safetensors").unlink(),
    "missing state": lambda path: (path / "state.json").unlink(),
    "empty state": lambda path: (path / "state.json").write_bytes(b""),
    "state is a list": lambda path: (path / "state.json").write_text("[]"),
    "state changed": lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"step": 2', '"step": 9')
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_is_passed_over_for_the_one_before(tmp_path, fault, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    FAULTS[fault](newest)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert str(newest) in loaded.faults[0]
    assert "Trying the one before it" in caplog.text


def test_with_no_whole_one_it_says_what_to_do(tmp_path):
    (save(tmp_path, 2) / "optim.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optim\.safetensors: No such file") as refused:
        load_checkpoint(tmp_path)
    assert "Errno" not in str(refused.value)
    assert "Put back a copy, or train again into another --out" in str(refused.value)


def test_a_lost_or_wrong_pointer_does_no_harm(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.write_text("step-00000077")
    assert load_checkpoint(tmp_path).step == 2
    pointer.unlink()
    assert load_checkpoint(tmp_path).step == 2


def test_no_checkpoint_and_no_good_checkpoint_are_told_apart(tmp_path, caplog):
    with pytest.raises(CheckpointError, match=r"no checkpoints.* not saved one yet"):
        load_checkpoint(tmp_path)
    flip(save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"No checkpoint .* is whole.*model\.safetensors"):
        load_checkpoint(tmp_path)
    assert "before it" not in caplog.text  # there is none
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "checkpoints" / "step-00000001")


@pytest.mark.parametrize("failing_write", [0, 1, 2, 3, 4])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, failing_write):
    """Whichever of the five writes (three tensor files, state, pointer) fails."""
    save(tmp_path, 1)
    write_file, writes = files._write, []

    def full(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == failing_write + 1:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(CheckpointError, match=r"No space left.*step-00000001.*--resume"):
        save(tmp_path, 2)
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert torch.equal(loaded.model["layer.weight"], tensors(1)["layer.weight"])
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    monkeypatch.undo()
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 2


def test_a_failed_rename_of_the_same_step_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, 1)
    rename = Path.rename

    def refuse(self, target):
        if self.name == ".writing-step-00000001":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(writer, "_exchange", lambda *_: False)  # as where it is not possible
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output"):
        save(tmp_path, 1)
    assert load_checkpoint(tmp_path).step == 1


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / "checkpoints" / ".writing-step-00000009"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(
            tmp_path,
            1,
            model_state={},
            ema_state={},
            optim_tensors={},
            state={"loss": float("nan")},
        )
    assert not (tmp_path / "checkpoints").exists()


def test_another_format_is_refused_by_number(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    record = json.loads(path.read_bytes())
    record["content"]["format"] = 99
    record["sha256"] = module._sha256(module._canonical(record["content"]))
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="format is 99"):
        load_checkpoint(tmp_path)


def test_weights_of_another_model_are_told_in_one_line(tmp_path):
    layer = torch.nn.Linear(4, 3)
    save_checkpoint(
        tmp_path,
        1,
        model_state=layer.state_dict(),
        ema_state=dict(layer.named_parameters()),
        optim_tensors={},
        state={},
    )
    loaded = load_checkpoint(tmp_path)
    loaded.check_fits(layer)
    with pytest.raises(CheckpointError, match=r"1 of 2 tensors differ, the first is weight\)"):
        loaded.check_fits(torch.nn.Linear(5, 3))
