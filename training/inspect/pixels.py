"""How well maps find the pixels of defects, where masks say which those are."""

import numpy as np

from service.cli.local import LocalClient
from service.errors import IafvaeError
from service.verdicts.ranks import Figure, pooled_detection
from training.data.image_files import read_fitted
from training.inspect.photos import Photos

__all__ = ["pixel_detection"]

CHUNK = 64


def pixel_detection(model: LocalClient, photos: Photos, size: tuple[int, int]) -> Figure | None:
    """AUROC of the maps' deviations, of either sign, over the pixels of all images with a mask.

    In the model's pixels: one that a mask covers by half or more belongs to the defect. None where
    no mask leaves both kinds of pixels.
    """
    images, masks = [], []
    for path, mask in photos.masks.items():
        try:
            images.append(read_fitted(path, photos.channels, size))
            masks.append(read_fitted(mask, 1, size)[0] >= 128)
        except (OSError, IafvaeError):  # told in the report
            del images[len(masks) :]
    if not any(mask.any() and not mask.all() for mask in masks):
        return None
    maps = [
        np.abs(model.anomalies(np.stack(images[first : first + CHUNK]), boxes=0)[0])
        for first in range(0, len(images), CHUNK)
    ]
    return pooled_detection(np.concatenate(maps), np.stack(masks))
