"""Which images train, choose, calibrate and test a model: kept apart by a fixed rule.

The official test images are `test`. MNIST and Fashion-MNIST: the 60,000 training images are put in
the order `argsort(Philox4x64(key=(SPLIT_KEY, 0)))`; the last 2,500 are `calibration`, the 2,500
before them `validation`, all others `train`. The raw output of NumPy's Philox bit generator is
guaranteed not to change between versions, so neither do the splits.

CIFAR-10, which people have in several orders: of the 50,000 training images in the order of their
SHA-256, cifar10_held_out.npy has the places of 2,500 for `validation` and of 2,500 for
`calibration`. They were drawn by the rule above from the order in which the first models' images
lay, so that no image that a model has learned from is ever held out.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

__all__ = ["SPLITS", "Split", "cifar10_indices", "epoch_order", "split_indices"]

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The day arXiv:1606.04934 appeared; any constant would do, but this one is for ever.
SPLIT_KEY = 20160615
SET_ASIDE = 2_500  # images each for validation and for calibration


def split_indices(count: int, split: Split) -> NDArray[np.int64]:
    """Which of `count` official training images belong to `split`, in the order kept."""
    if count <= 2 * SET_ASIDE:
        raise DataError(f"{count} images are too few to set {2 * SET_ASIDE} aside.")
    order = _permutation(count, SPLIT_KEY, 0)
    train = count - 2 * SET_ASIDE
    bounds = {
        "train": slice(0, train),
        "validation": slice(train, train + SET_ASIDE),
        "calibration": slice(train + SET_ASIDE, count),
    }
    return order[bounds[split]]


def cifar10_indices(count: int, split: Split) -> NDArray[np.int64]:
    """Which of CIFAR-10's training images, in the order of their SHA-256, belong to `split`."""
    path = Path(__file__).with_name("cifar10_held_out.npy")
    held_out: NDArray[np.int64] = np.load(path, allow_pickle=False).astype(np.int64)  # [2, 2500]
    if split == "train":
        return np.setdiff1d(np.arange(count), held_out)
    chosen: NDArray[np.int64] = held_out[0 if split == "validation" else 1]
    return chosen


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64 [count], a pure function of (seed, epoch).

    So a resumed run needs no generator's state. `seed` and `epoch` are in 0 .. 2^64 - 1.
    """
    # Counted from 1: epoch 0 never repeats the order of the splits.
    return _permutation(count, seed, epoch + 1)


def _permutation(count: int, key: int, stream: int) -> NDArray[np.int64]:
    raw = np.random.Philox(key=np.array([key, stream], np.uint64)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)
