"""A run's directory: its `config.json`, who may write into it, and what it may be resumed as."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model.config import ConfigError
from training.config import RunConfig, run_config_from_dict
from training.data import FOLDER_PREFIX
from training.errors import TrainingError
from training.files import TEMPORARY, write_bytes, write_json
from training.overrides import PARTS

__all__ = [
    "is_left",
    "known_data_dir",
    "locked",
    "open_run",
    "read_config",
    "refuse_taken",
    "remember_data_dir",
    "write_config",
]

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
PUT_BACK = "put back the one that `fit` wrote"
DATA_DIR_FILE = ".data-dir"  # of this machine alone: no copy or bundle of the run has it
# How long a run is, how high its rate and when it falls, how tight its bound is and what its images
# go through may be thought over while it goes on.
MAY_CHANGE = {
    "data.distorted",
    "train.epochs",
    "train.importance_samples",
    "optim.learning_rate",
    "optim.decay_fraction",
}


def write_config(run_dir: Path, config: RunConfig, environment: Mapping[str, Any]) -> None:
    """Write `config.json`, whole or not at all."""
    write_json(run_dir / CONFIG_FILE, {**config.to_dict(), "environment": dict(environment)})


def read_config(run_dir: Path) -> RunConfig:
    """Read a run's `config.json`; raises `TrainingError` saying what to do where it cannot."""
    path = run_dir / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise TrainingError(
            f"{run_dir} holds no run ({CONFIG_FILE} is missing): name the directory that "
            "`iafvae-train fit --out` has written, whole"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{path} is not readable JSON ({error}): {PUT_BACK}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path} holds no JSON object: {PUT_BACK}")
    values.pop("environment", None)
    try:
        return run_config_from_dict(values)
    except ConfigError as error:
        raise TrainingError(f"{path}: {error}") from error


def remember_data_dir(run_dir: Path, data_dir: Path | None) -> None:
    """Keep where the images of a run lie, for later commands on it."""
    if data_dir is not None:
        write_bytes(run_dir / DATA_DIR_FILE, os.fsencode(data_dir.resolve()))


def known_data_dir(run_dir: Path, given: Path | None) -> Path | None:
    """The data directory that is `given`, else the one that the run remembers, if it exists."""
    if given is not None:
        return given
    try:
        remembered = Path(os.fsdecode((run_dir / DATA_DIR_FILE).read_bytes()))
    except OSError:
        return None
    return remembered if remembered.is_dir() else None


def open_run(run_dir: Path, config: RunConfig, *, resume: bool) -> None:
    """Check that `run_dir` can hold this run; raises `TrainingError` saying what to do."""
    if run_dir.exists() and not run_dir.is_dir():
        raise TrainingError(f"{run_dir} is a file; give the run a directory of its own with --out")
    if (run_dir / CONFIG_FILE).exists():
        if not resume:
            raise TrainingError(
                f"{run_dir} already holds a run; go on with --resume, or give another --out"
            )
        _check_same(run_dir, read_config(run_dir), config)
    elif resume:
        raise TrainingError(f"{run_dir} holds no run; start one without --resume")
    elif run_dir.exists() and any(not is_left(path) for path in run_dir.iterdir()):
        raise TrainingError(f"{run_dir} is not empty and not a run; give another --out")


def is_left(path: Path) -> bool:
    """Whether a call that was killed at its very start may have left this."""
    return path.name == LOCK_FILE or path.name.startswith(TEMPORARY)


def refuse_taken(out: Path) -> None:
    """Raise `TrainingError` where `out` is neither new nor an empty directory, or cannot be made:
    before the work, not after it."""
    place = out.resolve()  # of a link, where it leads
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise TrainingError(f"{out} is not empty: give another --out")
    if place == Path.cwd() or place.is_mount():  # what stands there is renamed onto
        raise TrainingError(f"{out} itself cannot become a run: give a directory in it as --out")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=TEMPORARY, dir=place.parent):
            pass
    except OSError as error:
        raise TrainingError(
            f"{out} cannot be made ({error.strerror}): give another --out"
        ) from error


def _check_same(run_dir: Path, before: RunConfig, now: RunConfig) -> None:
    may_change = set(MAY_CHANGE)
    if not now.train.has_free_bits:  # micro-batches then add up to the same step
        may_change.add("optim.accumulate")
    if now.data.with_validation:  # what has been learned is not forgotten
        may_change.add("data.with_validation")
    old, new = before.to_dict(), now.to_dict()
    if all(each.data.name.startswith(FOLDER_PREFIX) for each in (before, now)):
        may_change.add("data.name")  # a folder that was moved: its images are compared
    changed = [
        f"{part}.{key}: {old[part].get(key)} then, {value} now"
        for part in PARTS
        for key, value in new[part].items()
        if old[part].get(key) != value and f"{part}.{key}" not in may_change
    ]
    if changed:
        raise TrainingError(
            f"{run_dir} was started with another configuration ({'; '.join(changed)}); only "
            "--epochs, --learning-rate, --decay-fraction, --distorted, --with-validation and "
            "--importance-samples may change at a resume, the place of a folder's images (--data), "
            "and --accumulate where there are no free bits"
        )


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make the directory and hold it for this process: no second one may train in it.

    The lock ends with the process, however it ends. Raises `TrainingError` where another holds it;
    systems and disks without such locks have none.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if not _acquire(file.fileno()):
            file.seek(0)
            raise TrainingError(
                f"another process (number {file.read().strip() or 'unknown'}) is training in "
                f"{run_dir}; stop it first, or give another --out"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for left in run_dir.glob(f"{TEMPORARY}*"):  # of a process that was killed
            if left.is_file():
                left.unlink(missing_ok=True)
        yield


def _acquire(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, a disk without locks
        pass
    return True
