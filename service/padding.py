"""Padding policies: to which sizes batches are padded.

A row's bytes must not depend on which batch it was in. Where a backend's kernels round
differently by batch size, only sizes that behave alike are used; where a backend plans by shape,
few shapes are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Buckets", "Padding", "RowBlocks"]


class Padding(Protocol):
    """To which size a batch of some rows is padded."""

    def size(self, rows: int) -> int:
        """The padded number of rows, at least `rows`."""
        ...


@dataclass(frozen=True)
class RowBlocks:
    """Multiples of `block` rows; 1 pads nothing."""

    block: int

    def size(self, rows: int) -> int:
        """The next multiple of the block."""
        return -(-rows // self.block) * self.block


@dataclass(frozen=True)
class Buckets:
    """The smallest of `sizes` (ascending) that holds the rows."""

    sizes: tuple[int, ...]

    def size(self, rows: int) -> int:
        """The bucket; rows beyond the largest are a fault of the caller."""
        return next(size for size in self.sizes if size >= rows)
