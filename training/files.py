"""Files and folders that appear whole or not at all, and stay after a crash of the machine.

Everything is written under another name beside its place, flushed to the disk, and renamed:
whoever reads sees the old one or the new one.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.bundle.writer import publish, sync, write_flushed

__all__ = [
    "TEMPORARY",
    "named",
    "new_folder",
    "publish_folder",
    "read_lines",
    "write_bytes",
    "write_json",
    "write_lines",
    "write_text",
]

TEMPORARY = ".writing-"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an `OSError` inside name `path`: of a disk that is full it names no file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file; what stood there before goes only when all of it is on the disk."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with named(path):
            _write(temporary, data)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """`write_text` of JSON for people too; a number that is not finite is a `ValueError`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """`write_text` of JSON objects, one a line."""
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines that tell their step; none where there is no file.

    What a crash cut off or spoilt is passed over.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [found for line in text.split("\n") if (found := _object(line)) is not None]


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def publish_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder of files; one that stood there before is kept until the new one is whole.

    What a process that was killed left of earlier attempts beside it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{TEMPORARY}*"):
        _remove(left)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        temporary.mkdir()
        for name, data in contents.items():
            _write(temporary / name, data)
        sync(temporary)
        publish(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name `path` when the block has ended well."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    _remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        _remove(temporary)


def _write(path: Path, data: bytes) -> None:
    with named(path):
        write_flushed(path, data)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
