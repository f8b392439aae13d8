"""Checkpoints that survive a crash, a full disk and a damaged file.

    RUN/checkpoints/step-00001200/{model,ema,optim}.safetensors, state.json
    RUN/checkpoints/latest          the name of the newest, as text

A checkpoint is published whole (`training.files`), then the pointer is replaced, only then are
older ones removed. Tensors are safetensors and everything else is JSON:
nothing that is loaded can run code. `state.json` holds the SHA-256 of every file and of itself.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from model import build_model
from model.contract import DensityModel
from training.config import RunConfig
from training.errors import CheckpointError, in_words
from training.files import publish_folder, write_text
from training.runs.directory import read_config

__all__ = [
    "Checkpoint",
    "Weights",
    "has_checkpoint",
    "load_checkpoint",
    "load_run",
    "run_directory",
    "save_checkpoint",
    "weights_used",
]

Weights = Literal["ema", "raw"]  # the averaged or the last parameters

FORMAT = 1
FOLDER = "checkpoints"
POINTER = "latest"
AVERAGED_ONLY = "averaged_only"  # in a state: the model's weights are themselves the average
STATE_FILE = "state.json"
TENSOR_FILES = ("model", "ema", "optim")
NAME = re.compile(r"step-(\d{8,})")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds; tensors on the CPU.

    `faults` names newer checkpoints that could not be used, each with its reason: empty where all
    is well.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    faults: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The directory of its run."""
        return run_directory(self.path)

    def check_fits(self, model: DensityModel) -> None:
        """Raise `CheckpointError` where its weights are those of another model."""
        held = {name: list(tensor.shape) for name, tensor in {**self.model, **self.ema}.items()}
        wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        if held != wanted:
            other = [name for name in held | wanted if held.get(name) != wanted.get(name)]
            raise CheckpointError(
                f"{self.path} holds the weights of another model than config.json describes "
                f"({len(other)} of {len(held | wanted)} tensors differ, the first is {other[0]}): "
                "put back the config.json that it was trained with."
            )


def run_directory(path: Path) -> Path:
    """The run that `path` is, or whose checkpoint it is."""
    return path.resolve().parent.parent if (path / STATE_FILE).is_file() else path


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor],
    optim_tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step` and return its directory; it and the one before are kept.

    `state` is whatever else a resumed run needs, as JSON (finite numbers only). Checkpoints of
    later steps are removed with the old ones: they belong to a run that was left behind. Raises
    `CheckpointError`, with every earlier checkpoint still in place, where the disk refuses.
    """
    folder = run_dir / FOLDER
    tensors = dict(zip(TENSOR_FILES, (model_state, ema_state, optim_tensors), strict=True))
    contents = {f"{name}.safetensors": _packed(part) for name, part in tensors.items()}
    contents[STATE_FILE] = _state_file(step, state, contents)
    path = folder / f"step-{step:08d}"
    try:
        publish_folder(path, contents)
        write_text(folder / POINTER, f"{path.name}\n")
    except OSError as error:
        earlier = ", ".join(other.name for other in _newest_first(folder))
        kept = f"Earlier ones are untouched ({earlier})" if earlier else "There is no earlier one"
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder} ({in_words(error)}). "
            f"{kept}: make room there and use --resume."
        ) from error
    older = [other for other in _newest_first(folder) if _step(other) < step]
    for other in set(_newest_first(folder)) - {path, *older[:1]}:
        shutil.rmtree(other, ignore_errors=True)
    return path


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    # Clones, because safetensors refuses tensors that share memory (tied weights, views).
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain)


def _state_file(step: int, state: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    sums = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    content = {"format": FORMAT, "step": step, "state": dict(state), "files": sums}
    record = {"content": content, "sha256": _sha256(_canonical(content))}
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode()


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has come to its first checkpoint, whole or not."""
    return bool(_newest_first(run_dir / FOLDER))


def load_checkpoint(path: Path) -> Checkpoint:
    """The newest good checkpoint of the run directory `path`, or the one checkpoint that `path`
    itself is.

    A damaged newest checkpoint is passed over with a logged warning for the one before it. Raises
    `CheckpointError` where there is none, or none that is whole.
    """
    if (path / STATE_FILE).is_file():
        return _read(path)
    candidates = _candidates(path / FOLDER)
    if not candidates:
        raise CheckpointError(
            f"There are no checkpoints in {path}: it is no run's directory, or its training has "
            "not saved one yet (it does within minutes, and when it ends)."
        )
    faults: list[str] = []
    for candidate in candidates:
        if faults:
            logger.warning("%s Trying the one before it.", faults[-1])
        try:
            found = _read(candidate)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return replace(found, faults=tuple(faults))
    raise CheckpointError(
        f"No checkpoint in {path} is whole. {' '.join(faults)} Put back a copy, or train "
        "again into another --out."
    )


def load_run(path: Path, *, weights: Weights = "ema") -> tuple[RunConfig, DensityModel, Checkpoint]:
    """A run's configuration, its model in eval mode on the CPU, and the checkpoint its weights are
    from.

    `path` is a run directory or one checkpoint in it. `weights` chooses the averaged ("ema") or the
    last ("raw") parameters; buffers are always the last. Raises `TrainingError`.
    """
    config = read_config(run_directory(path))
    checkpoint = load_checkpoint(path)
    if weights == "raw" and checkpoint.state.get(AVERAGED_ONLY):
        raise CheckpointError(
            f"{checkpoint.path} holds the averaged weights alone: use --weights ema."
        )
    model = build_model(config.model)
    checkpoint.check_fits(model)
    averaged = checkpoint.ema if weights == "ema" else {}
    model.load_state_dict({**checkpoint.model, **averaged})
    return config, model.eval(), checkpoint


def weights_used(checkpoint: Checkpoint, weights: Weights) -> dict[str, Any]:
    """Which weights: two runs, or one taken up again earlier, may come to the same step."""
    name = "ema" if weights == "ema" and checkpoint.ema else "model"
    digest = hashlib.sha256((checkpoint.path / f"{name}.safetensors").read_bytes()).hexdigest()
    return {"step": checkpoint.step, "weights": weights, "weights_sha256": digest}


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints in the order to try them: what the pointer names, then the others, newest
    first."""
    names = _newest_first(folder)
    try:
        pointed = folder / (folder / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return names
    return sorted(names, key=lambda path: path != pointed)  # stable: only the pointed one moves


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step-*") if NAME.fullmatch(path.name))
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(path: Path) -> Checkpoint:
    try:
        content = _verified_content((path / STATE_FILE).read_bytes())
        model, ema, optim = (
            _tensors(path / f"{name}.safetensors", content) for name in TENSOR_FILES
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged or incomplete: {in_words(error)}."
        ) from error
    return Checkpoint(content["step"], model, ema, optim, content["state"], path)


def _verified_content(data: bytes) -> dict[str, Any]:
    record = json.loads(data)
    content: dict[str, Any] = record["content"]
    if _sha256(_canonical(content)) != record["sha256"]:
        raise ValueError(f"the SHA-256 of {STATE_FILE} is not what it says")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, this program reads {FORMAT}")
    return content


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    data = path.read_bytes()
    if _sha256(data) != content["files"][path.name]["sha256"]:
        raise ValueError(f"the SHA-256 of {path.name} is not what {STATE_FILE} says")
    return safetensors.torch.load(data)
