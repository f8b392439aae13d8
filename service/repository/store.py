"""The directory of bundles: what is in it, whether that changed, and opening one of them.

Everything here is about files, and blocks. A bundle is known by the name of its directory; names
come from listing the directory alone, so no text of a caller becomes a path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.bundle import MANIFEST, BundleError
from service.bundle.reader import FOLDERS, MAX_MANIFEST_BYTES
from service.errors import UnknownBundle
from service.metrics import Metrics, ModelMetrics
from service.operations.model import Model
from service.settings import Settings

__all__ = ["FOREIGN", "Fingerprint", "Found", "ModelStore", "Survey", "bundle_paths"]

logger = logging.getLogger("iafvae")

# Name, size, times and inode of every file: what changes when a bundle does.
Fingerprint = tuple[tuple[str | int, ...], ...]

# By name, in order, where each bundle lies and what it looks like now, None where it changes
# meanwhile; and why entries that may be bundles cannot be looked at.
Survey = tuple[dict[str, tuple[Path, Fingerprint | None]], dict[str, str]]

# What a file system puts into a volume: that it cannot be read is no fault of a bundle.
FOREIGN = frozenset({"lost+found"})

# What editors and tools that copy call a file or directory that is not finished, or not in use.
UNFINISHED = ("~", ".tmp", ".temp", ".part", ".partial", ".swp", ".bak", ".old")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A bundle on disk, not verified; `present` are the names of all that are there.

    hash: as the bundle would be known by, None where its manifest cannot be read.
    """

    path: Path
    looks: Fingerprint | None
    hash: str | None
    present: frozenset[str]


class ModelStore:
    """The bundles at ``settings.models``: one, or those in a directory."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.root = settings.models
        self._single = False
        with suppress(OSError):  # `bundle_paths` says what cannot be looked at
            self._single = (self.root / MANIFEST).exists()

    def look(self, directory: str) -> Found:
        """The bundle in `directory`, as it is now. Raises UnknownBundle."""
        try:
            paths, _ = self._entries()
        except OSError as error:
            raise UnknownBundle(f"the models cannot be listed ({error.strerror})") from error
        if directory not in paths:
            shown = ", ".join(list(paths)[:20]) or "none"
            raise UnknownBundle(f"there is no bundle {directory[:80]!r}; there are {shown}")
        path = paths[directory]
        return Found(
            path=path, looks=_fingerprint(path), hash=_manifest_hash(path), present=frozenset(paths)
        )

    def survey(self) -> Survey:
        """What is there now. Raises OSError where the directory cannot be listed."""
        paths, strange = self._entries()
        return {name: (path, _fingerprint(path)) for name, path in paths.items()}, strange

    def _entries(self) -> tuple[dict[str, Path], dict[str, str]]:
        """The bundles, and what cannot be looked at, of one listing."""
        if self._single:
            here = (self.root / MANIFEST).is_file()
            return ({self.root.resolve().name: self.root} if here else {}), {}
        bundles, strange = _survey(self.root)
        return {path.name: path for path in bundles}, strange

    def open(self, path: Path) -> Model:
        """Verify, load and warm the bundle at `path`: its canaries are computed on this machine.

        Raises BundleError, ProviderUnavailable, or what a device raises.
        """
        if not (self._single or path.resolve().is_relative_to(self.root.resolve())):
            raise BundleError(
                f"bundle {path}: is a link that leaves the models' directory: copy the bundle into "
                "it"
            )
        settings = self._settings
        return Model.load(
            path.resolve(),  # a link that is turned meanwhile changes nothing
            engine=settings.engine,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            hang_seconds=settings.hang_seconds,
            observe=partial(ModelMetrics, self._metrics),
        )


NAME_ONE = (
    "name a bundle's directory, or a directory of bundles, by --models, --bundle or IAFVAE_MODELS"
)


def bundle_paths(path: Path) -> list[Path]:
    """`path` itself if it is a bundle, else the bundles in it, by name. Raises BundleError."""
    try:
        if (path / MANIFEST).exists():
            return [path]
        if not path.is_dir():
            raise BundleError(f"there is no bundle at {path}: {NAME_ONE}")
        found, strange = _survey(path)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be listed ({error.strerror}): give this process the right to"
        ) from error
    if not found:
        reasons = "".join(f"; {name} {why}" for name, why in strange.items())
        raise BundleError(
            f"{path} is no bundle and holds none (no {MANIFEST} in it or one level below{reasons}):"
            f" {NAME_ONE}"
        )
    return found


def _survey(root: Path) -> tuple[list[Path], dict[str, str]]:
    """The bundles in `root`, in order, and what cannot be looked at: name -> why."""
    bundles, strange = [], {}
    for entry in sorted(root.iterdir()):
        # Hidden ones are another process's that is writing a bundle, or died of it.
        if entry.name.startswith(".") or entry.name.lower().endswith(UNFINISHED):
            continue
        try:
            if _holds_manifest(entry):
                bundles.append(entry)
        except (OSError, ValueError) as error:
            # Escaped, so that it can be said: in an answer, a log, a metric.
            name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            strange[name] = getattr(error, "strerror", None) or str(error)
    return bundles, strange


def _holds_manifest(entry: Path) -> bool:
    """Raises OSError or ValueError where that cannot be known, or the name could not be said."""
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("has a name that is no UTF-8: rename it") from None
    try:
        entry.stat()
        if not stat.S_ISREG((entry / MANIFEST).stat().st_mode):
            return False
        os.scandir(entry).close()  # it may be entered, but not listed
    except (FileNotFoundError, NotADirectoryError):
        if not entry.exists():
            raise ValueError("is a link to nothing") from None
        return False
    except PermissionError:
        raise ValueError("cannot be read: give this process the right to") from None
    return True


def _fingerprint(path: Path) -> Fingerprint | None:
    """What the files at `path` look like without reading them; None where they cannot be seen."""
    try:
        return tuple(sorted(_stamps(path)))
    except OSError:
        return None


def _stamps(path: Path | str) -> Iterator[tuple[str | int, ...]]:
    """Of all that lies there, and of what lies in a bundle's folders of graphs."""
    with os.scandir(path) as entries:
        for entry in entries:
            yield _stamp(entry)
            # Links are not followed: one to the folder that it lies in has no end.
            if entry.name in FOLDERS and entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as graphs:
                    yield from map(_stamp, graphs)


def _stamp(entry: os.DirEntry[str]) -> tuple[str | int, ...]:
    try:
        status = entry.stat()
    except OSError:  # a link to nothing: its bundle is refused, not waited for
        status = entry.stat(follow_symlinks=False)
    # The time of the last change of status catches a copy that keeps size and time.
    times = status.st_mtime_ns, status.st_ctime_ns
    return (entry.name, status.st_size, *times, status.st_ino, status.st_dev)


def _manifest_hash(path: Path) -> str | None:
    """The hash that a bundle at `path` would be known by; None where it cannot be read."""
    try:
        with (path / MANIFEST).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        return None
    return hashlib.sha256(data).hexdigest() if len(data) <= MAX_MANIFEST_BYTES else None
