"""Padding policies: to which sizes batches are padded.

A row's bytes must not depend on which batch it was in. Where a backend's kernels round
differently by batch size, only sizes that behave alike are used; where a backend plans by shape,
few shapes are used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["Buckets", "Padding", "RowBlocks"]


@dataclass(frozen=True)
class RowBlocks:
    """Multiples of `block` rows; 1 pads nothing."""

    block: int

    def size(self, rows: int) -> int:
        """The padded number of rows: the next multiple of the block."""
        return -(-rows // self.block) * self.block

    def shape(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The padded ``N`` images and, where a graph has both, ``R`` rows, each by itself."""
        return {name: self.size(rows) for name, rows in sizes.items()}


@dataclass(frozen=True)
class Buckets:
    """The smallest of `sizes` (ascending) that holds the rows.

    Pairs of images and rows are kept few, each is a session to prepare: a batch that has more
    images than rows gets as many rows, one that has far fewer gets images for the bucket below.
    """

    sizes: tuple[int, ...]

    def size(self, rows: int) -> int:
        """The bucket; rows beyond the largest are a fault of the caller."""
        return next(size for size in self.sizes if size >= rows)

    def shape(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """A pair of buckets, or one."""
        shape = {name: self.size(rows) for name, rows in sizes.items()}
        if "R" in shape and "N" in shape:
            shape["R"] = max(shape["R"], shape["N"])
            shape["N"] = max(shape["N"], self._below(shape["R"]))
        return shape

    def shapes(self, dims: Collection[str]) -> list[dict[str, int]]:
        """All shapes of a graph over the dimensions `dims`, the largest first."""
        descending = self.sizes[::-1]
        if set(dims) != {"N", "R"}:
            return [dict.fromkeys(dims, rows) for rows in descending]
        return [
            {"N": images, "R": rows}
            for rows in descending
            for images in sorted({rows, self._below(rows)}, reverse=True)
        ]

    def _below(self, size: int) -> int:
        return self.sizes[max(0, self.sizes.index(size) - 1)]


Padding = RowBlocks | Buckets
