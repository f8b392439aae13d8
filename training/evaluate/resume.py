"""Results so far of a long measurement, on the disk: an interruption costs seconds, not hours.

OUT/.bound-3f0c9a1b22de.npz      named after all that determines the numbers

Numbers of other weights, images or draws have another name, so nothing is ever mixed.
"""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.files import write_bytes

__all__ = ["Partial", "digest"]

Arrays = dict[str, NDArray[Any]]

# What a crash may cost: a file is written whole each time, so not after every part.
SAVE_SECONDS = 20.0


def digest(pixels: NDArray[np.uint8]) -> str:
    """What tells these images from others, for a `Partial`'s key."""
    shape = json.dumps(pixels.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()


class Partial:
    """Arrays that grow at their first axis, part after part, kept in one file of `folder`.

    `key` holds, as JSON values, all that determines the numbers; `count` names the array whose
    length says how far the measurement has come.
    """

    def __init__(self, folder: Path, kind: str, key: Mapping[str, Any], count: str) -> None:
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f".{kind}-{name}.npz"
        self.count = count
        self._parts: list[Arrays] = []
        self._saved = time.monotonic()
        if found := _read(self.path):
            self._parts.append(found)

    @property
    def done(self) -> int:
        """How many images have been measured."""
        return sum(len(part[self.count]) for part in self._parts)

    def add(self, arrays: Arrays) -> None:
        """Keep a part's arrays; always the same names."""
        self._parts.append(arrays)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def arrays(self) -> Arrays:
        """All parts together, in their order; nothing where there is none."""
        if len(self._parts) > 1:
            names = self._parts[0]
            self._parts = [{n: np.concatenate([p[n] for p in self._parts]) for n in names}]
        return dict(self._parts[0]) if self._parts else {}

    def save(self) -> None:
        """Write what there is, whole or not at all."""
        self._saved = time.monotonic()
        if self._parts:
            buffer = io.BytesIO()
            np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
            write_bytes(self.path, buffer.getvalue())

    def remove(self) -> None:
        """Forget the file: the measurement is over and written elsewhere."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """Save whatever was added, however the block ends."""
        try:
            yield self
        finally:
            self.save()


def _read(path: Path) -> Arrays:
    """The arrays of a file; none where it is missing or spoilt: they are then made again."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
