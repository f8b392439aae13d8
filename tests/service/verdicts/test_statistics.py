"""Boxes against plain loops, compressed bytes against zlib on PNG's filter."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from service.verdicts.statistics import boxes, compressed_bytes


@pytest.mark.parametrize("shape", [(9, 7), (4, 4), (3, 5)])
def test_boxes_are_means_of_roots_less_half_their_ring(shape):
    residual = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    side = min(4, *shape)
    got = boxes(residual)
    assert got.shape == (2, shape[0] - side + 1, shape[1] - side + 1)
    for n, top, left in np.ndindex(got.shape):
        off = [[r / math.sqrt(abs(r) + 1 / 255) for r in row] for row in residual[n].tolist()]
        wide = np.pad(off, 1, mode="symmetric")
        window = wide[top : top + side + 2, left : left + side + 2]
        inner = window[1:-1, 1:-1]
        ring = (window.sum() - inner.sum()) / (window.size - inner.size)
        assert got[n, top, left] == pytest.approx(inner.mean() - 0.5 * ring, abs=1e-6)


def test_compressed_bytes_count_differences():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 6), np.uint8)
    images[1] = 7
    for image, count in zip(images, compressed_bytes(images), strict=True):
        first = image[..., :1].astype(int)
        filtered = np.concatenate([first, np.diff(image.astype(int))], axis=-1) % 256
        assert count == len(zlib.compress(filtered.astype(np.uint8).tobytes(), 6))
    assert compressed_bytes(images)[1] < compressed_bytes(images)[0]
