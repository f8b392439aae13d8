"""The directory of bundles: what is in it, whether that changed, and opening one of them.

Everything here is about files, and blocks. A bundle is known by the name of its directory; names
come from listing the directory alone, so no text of a caller becomes a path.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from service.bundle import MANIFEST, BundleError
from service.errors import UnknownBundle
from service.metrics import Metrics
from service.operations.model import Model
from service.settings import Settings

__all__ = ["Fingerprint", "Found", "ModelStore", "bundle_paths"]

logger = logging.getLogger("iafvae")

# Name, size, times and inode of every file: what changes when a bundle does.
Fingerprint = tuple[tuple[str | int, ...], ...]

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
        self._single = (self.root / MANIFEST).exists()

    def paths(self) -> dict[str, Path]:
        """Directories that hold a manifest, by name, in order. Raises OSError."""
        if self._single:
            here = (self.root / MANIFEST).is_file()
            return {self.root.resolve().name: self.root} if here else {}
        return {path.name: path for path in _listed(self.root)}

    def look(self, directory: str) -> Found:
        """The bundle in `directory`, as it is now. Raises UnknownBundle."""
        try:
            paths = self.paths()
        except OSError as error:
            raise UnknownBundle(f"the models cannot be listed ({error.strerror})") from error
        if directory not in paths:
            shown = ", ".join(list(paths)[:20]) or "none"
            raise UnknownBundle(f"there is no bundle {directory[:80]!r}; there are {shown}")
        path = paths[directory]
        return Found(
            path=path,
            looks=_fingerprint(path),
            hash=_manifest_hash(path),
            present=frozenset(paths),
        )

    def fingerprints(self) -> dict[str, Fingerprint]:
        """What each bundle looks like now; one that changes while it is looked at is left out.

        Raises OSError where the directory cannot be listed.
        """
        seen = {name: _fingerprint(path) for name, path in self.paths().items()}
        return {name: found for name, found in seen.items() if found is not None}

    def open(self, path: Path) -> Model:
        """Verify, load and warm the bundle at `path`: its canaries are computed on this machine.

        Raises BundleError, ProviderUnavailable, or what a device raises.
        """
        self._check_inside(path)
        settings = self._settings
        return Model.load(
            path.resolve(),  # a link that is turned meanwhile changes nothing
            engine=settings.engine,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            hang_seconds=settings.hang_seconds,
            observe=self._metrics.model,
        )

    def _check_inside(self, path: Path) -> None:
        if self._single or path.resolve().is_relative_to(self.root.resolve()):
            return
        raise BundleError(
            f"bundle {path}: is a link that leaves {self.root}: copy the bundle into the directory"
        )


def bundle_paths(path: Path) -> list[Path]:
    """`path` itself if it is a bundle, else the bundles in it, by name. Raises BundleError."""
    if (path / MANIFEST).exists():
        return [path]
    if not path.is_dir():
        raise BundleError(
            f"there is no bundle at {path}: set IAFVAE_MODELS, or --models, to a bundle's "
            "directory or to a directory of bundles"
        )
    found = _listed(path)
    if not found:
        raise BundleError(
            f"{path} is no bundle and holds none (no {MANIFEST} in it or one level below): "
            "set IAFVAE_MODELS, or --models, to another directory"
        )
    return found


def _listed(root: Path) -> list[Path]:
    # Hidden ones are another process's that is writing a bundle, or died of it.
    return sorted(
        entry
        for entry in root.iterdir()
        if not entry.name.startswith(".")
        and not entry.name.lower().endswith(UNFINISHED)
        and (entry / MANIFEST).is_file()
    )


def _fingerprint(path: Path) -> Fingerprint | None:
    """What the files at `path` look like without reading them; None where they cannot be seen."""
    try:
        with os.scandir(path) as entries:
            return tuple(sorted(_stamp(entry) for entry in entries))
    except OSError:
        return None


def _stamp(entry: os.DirEntry[str]) -> tuple[str | int, ...]:
    status = entry.stat()
    # The time of the last change of status catches a copy that keeps size and time.
    times = status.st_mtime_ns, status.st_ctime_ns
    return (entry.name, status.st_size, *times, status.st_ino, status.st_dev)


def _manifest_hash(path: Path) -> str | None:
    """The hash that a bundle at `path` would be known by; None where it cannot be read."""
    try:
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None
