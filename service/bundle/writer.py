"""Writing a bundle: complete and proved, or not at all.

A bundle is made in a temporary directory beside its destination, flushed to disk, read back by the
reader that servers use, and only then given its name. Whoever watches the destination sees the old
bundle or the new one, never a half.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.bundle.manifest import is_file_name
from service.bundle.reader import MANIFEST, Bundle, BundleError, load_bundle

__all__ = ["publish", "refuse_strangers", "sync", "write_bundle", "write_flushed"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def write_bundle(
    destination: Path | str,
    manifest_fields: Mapping[str, Any],
    contents: Mapping[str, bytes],
    check: Callable[[Bundle], None] | None = None,
) -> Bundle:
    """Write a bundle to the directory `destination` and return it as a server would load it.

    manifest_fields: everything but ``files``, which is computed; contents: file name -> its bytes;
    check: called with the finished bundle before it is published. A bundle that stands at
    `destination` is replaced; anything else there is not. Whatever is raised on the way, nothing is
    published and nothing is left behind.
    """
    destination = Path(destination)
    refuse_strangers(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        staging.chmod(0o755)
        for name, data in contents.items():
            if not is_file_name(name):
                raise BundleError(f"{name!r} is no file name for a bundle: use a plain name")
            (staging / name).parent.mkdir(exist_ok=True)
            write_flushed(staging / name, data)
        files = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in contents.items()
        }
        whole = {**manifest_fields, "files": files}
        text = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        write_flushed(staging / MANIFEST, f"{text}\n".encode())
        for folder in {(staging / name).parent for name in contents}:
            sync(folder)
        sync(staging)
        bundle = load_bundle(staging)
        if check is not None:
            check(bundle)
        publish(staging, destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return replace(bundle, path=destination)


def refuse_strangers(destination: Path) -> None:
    """Raises BundleError where `destination` holds something else than a bundle, or has no name."""
    if not destination.name:
        raise BundleError(f"{destination} cannot become a bundle: give a directory in it")
    if destination.is_dir() and not destination.is_symlink():
        if not any(destination.iterdir()) or (destination / MANIFEST).is_file():
            return
    elif not destination.exists() and not destination.is_symlink():
        return
    raise BundleError(
        f"{destination} exists and is no bundle: give another directory, or remove it yourself"
    )


def write_flushed(file: Path, data: bytes) -> None:
    """Write `file`, which is on the disk then."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can (Windows cannot)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(staging: Path, destination: Path) -> None:
    """Give `staging` its name: in one step where the system can swap directories, else in two."""
    if not destination.exists():
        staging.rename(destination)
    elif not _exchange(staging, destination):
        old = staging.with_name(staging.name + ".old")
        destination.rename(old)
        try:
            staging.rename(destination)
        except OSError:
            old.rename(destination)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(destination.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories atomically (Linux, `renameat2(2)`); False where that is not possible."""
    with suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(one), os.fsencode(other)
        return bool(rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)
    return False
