"""A folder of a user's own images (PNG, JPEG, WebP), split by file name.

A file's split is a function of its path relative to the folder: SHA-256 of the path (UTF-8, NFC,
"/" between its parts), its first eight bytes as a fraction of 2^64: below 0.80 `train`, below 0.85
`validation`, below 0.90 `calibration`, else `test`. Files that are added later move no other file.
A copy of a file that an earlier one of these splits has is left out: no image is both learned from
and measured on.

A folder that has `train` and `test` gives the splits itself (`validation` and `calibration` are
then taken from `train` by its files' names, unless they are there too), as MVTec's sets: everything
else in it is no image to learn from (`ground_truth`: masks), nor is what lies in a sub-folder of
`test` that `train` does not have (defects; where `train` has none, beside one called `good`).

Files are decoded and fitted as the service does it (`service.codecs.images`).
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from service.codecs.folders import USUAL, read_file
from service.codecs.headers import Header
from service.codecs.images import Fit, FitMode, Fitted, PixelLimits, fit_files
from service.errors import IafvaeError
from training.data.image_files import (
    MAX_PIXELS,
    Files,
    by,
    fault,
    image_files,
    refuse,
    shown,
    some,
    sound_header,
)
from training.errors import DataError

__all__ = ["FolderOptions", "Survey", "decode", "split_of", "survey"]

UPPER_BOUNDS = {"train": 0.80, "validation": 0.85, "calibration": 0.90, "test": 1.0}
LARGE = 256 * 256  # pixels: an image of more is a photo that nobody meant to model as it is
USUAL_ALPHA = 0.01
FITTED = {
    "crop": "scaled and cut around the middle to",
    "pad": "scaled into the middle of a black",
    "none": "of which all must be",
}


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What to make of the images.

    `size` (height, width): each image is fitted to it, as `fit` says (see
    `service.codecs.images.Fit`; "none": another size or colour is an error). None: all must have
    one size already. `channels` 1 (grey) or 3 (RGB). None: grey if all files are grey, RGB if all
    are coloured.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    fit: FitMode = "crop"

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels is 1 (grey) or 3 (RGB), not {self.channels}.")
        if self.size is not None and min(self.size) < 1:
            raise DataError(f"size must be at least 1, not {self.size}.")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a folder holds: its files by split, and what all images are made to be, and how.

    `sizes`: height and width of the smallest and the largest image; `notes`: what was passed over.
    """

    folder: Path
    fit: FitMode
    splits: Mapping[str, Files]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    height_width: tuple[int, int]
    channels: int
    notes: tuple[str, ...]

    def split(self, name: str) -> Files:
        """The files of one split; raises `DataError` where there are none."""
        if not self.splits[name]:
            raise DataError(
                f"None of the {len(self.files)} images in {shown(self.folder)} falls into {name!r} "
                "(their names decide: 80 of 100 train, 5 validation, 5 calibration, 10 test): add "
                "images."
            )
        return self.splits[name]

    @property
    def files(self) -> Files:
        """The files of all splits."""
        return dict(sorted(pair for files in self.splits.values() for pair in files.items()))

    def lines(self) -> Iterator[str]:
        """What people want to know before a training starts."""
        counts = {split: len(files) for split, files in self.splits.items()}
        parts = ", ".join(f"{count} {split}" for split, count in counts.items())
        yield f"{shown(self.folder)}: {sum(counts.values())} images ({parts})"
        smallest, largest = map(by, self.sizes)
        sizes = smallest if smallest == largest else f"{smallest} to {largest}"
        wanted = by(self.height_width)
        fit = "" if sizes == wanted else f", {FITTED[self.fit]} {wanted}"
        colour = "grey" if self.channels == 1 else "RGB"
        yield f"sizes (height x width): {sizes}{fit}; {colour}"
        yield from self.notes
        least = 1 / (counts["calibration"] + 1)
        if least > USUAL_ALPHA:
            yield (
                f"note: {counts['calibration']} calibration images give p-values of at least "
                f"{least:.2g}: for a verdict at alpha {USUAL_ALPHA} add images, until they are 99"
            )


def split_of(relative_path: str) -> str:
    """The split of the file at `relative_path` ("cats/one.png")."""
    name = os.fsencode(unicodedata.normalize("NFC", relative_path))  # bytes that are no UTF-8 stay
    fraction = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64
    return next(
        split for split, bound in UPPER_BOUNDS.items() if fraction < bound or split == "test"
    )


def _splits(files: Files) -> tuple[dict[str, str], list[str]]:
    """The split of each file that has one, and what is worth telling of it."""
    parts = {name: name.split("/") for name in files}
    given = {first for first, *rest in parts.values() if rest and first in UPPER_BOUNDS}
    if not {"train", "test"} <= given:
        return {name: split_of(name) for name in files}, []
    usual = {rest[0] for first, *rest in parts.values() if first == "train" and len(rest) > 1}
    tested = {rest[0] for first, *rest in parts.values() if first == "test" and len(rest) > 1}
    usual = usual or {name for name in tested if name.lower() in USUAL}
    found, odd = {}, set()
    for name, (first, *rest) in parts.items():
        if not rest or first not in given:
            odd.add(first)
        elif first == "test" and usual and len(rest) > 1 and rest[0] not in usual:
            odd.add(f"test/{rest[0]}")
        elif first == "train" and (split := split_of(name)) not in given:
            found[name] = split
        else:
            found[name] = first
    notes = [f"splits as the folders say: {', '.join(s for s in UPPER_BOUNDS if s in given)}"]
    if odd:
        notes.append(f"neither learned from nor measured on: {some(sorted(odd))}")
    return found, notes


def survey(folder: Path, options: FolderOptions) -> Survey:
    """Look through a folder without decoding.

    Size and channels are inferred over the whole folder, so that every split has the same. Raises
    `DataError`: no folder, no images, unreadable files (named), several sizes or both grey and
    colour while none was asked for, photos too large to be modelled as they are.
    """
    files, notes = image_files(folder)
    split_by_name, notes_on_splits = _splits(files)
    notes += notes_on_splits
    files = {name: path for name, path in files.items() if name in split_by_name}
    headers = _headers(files)
    copies = _copies(files, split_by_name)
    if copies:
        named = some([f"{shown(copy)} (of {shown(kept)})" for copy, kept in copies.items()])
        notes.append(f"left out, copies of images in another split: {named}")
    splits: dict[str, Files] = {split: {} for split in UPPER_BOUNDS}
    for name, path in files.items():
        if name not in copies:
            splits[split_by_name[name]][name] = path
    sizes = sorted((header.size for header in headers.values()), key=np.prod)
    return Survey(
        folder=folder,
        fit=options.fit,
        splits=splits,
        sizes=(sizes[0], sizes[-1]),
        height_width=options.size or _one_size(headers),
        channels=options.channels or _one_colour(headers),
        notes=tuple(notes),
    )


def decode(found: Survey, files: Files) -> Fitted:
    """The images in `files` in their order, as the service reads and fits them, in memory.

    Raises `DataError` naming those that cannot be decoded.
    """
    height, width = found.height_width
    shape = (found.channels, height, width)
    rules = Fit(resize=True, convert=found.fit != "none", how=found.fit)
    limits = PixelLimits(image=MAX_PIXELS, total=MAX_PIXELS)
    try:
        images = np.empty((len(files), *shape), np.uint8)
    except (MemoryError, ValueError):
        raise DataError(
            f"{len(files)} images of {height}x{width} do not fit into memory: give a smaller "
            "--size."
        ) from None
    altered = np.zeros(len(files), np.bool_)
    faults: list[str] = []
    notes: list[str] = []
    for row, path in enumerate(files.values()):
        try:
            one = fit_files([read_file(path)], shape, rules, limits, [shown(path)])
        except (OSError, IafvaeError) as error:
            faults.append(fault(path, error))
            continue
        images[row], altered[row] = one.images[0], one.altered[0]
        notes += one.notes
    refuse(faults, len(files))
    return Fitted(images, altered, (some(notes, "; "),) if notes else ())


def _headers(files: Files) -> dict[Path, Header]:
    """Every file's header; all that cannot be read are named together, not one for each attempt."""
    headers: dict[Path, Header] = {}
    faults = []
    for path in files.values():
        try:
            header, _ = sound_header(path)
            headers[path] = replace(header, body=b"")  # of all photos they may be gigabytes
        except (OSError, IafvaeError, DataError) as error:
            faults.append(fault(path, error))
    refuse(faults, len(files))
    return headers


def _copies(files: Files, split_by_name: Mapping[str, str]) -> dict[str, str]:
    """Files whose content an earlier split has -> the file that is kept."""
    alike: dict[int, list[str]] = defaultdict(list)
    for name, path in files.items():
        alike[path.stat().st_size].append(name)
    copies = {}
    for names in alike.values():
        if len({split_by_name[name] for name in names}) == 1:
            continue
        kept: dict[bytes, str] = {}
        order = list(UPPER_BOUNDS)
        for name in sorted(names, key=lambda name: order.index(split_by_name[name])):
            first = kept.setdefault(hashlib.sha256(files[name].read_bytes()).digest(), name)
            if split_by_name[first] != split_by_name[name]:
                copies[name] = first
    return copies


def _one_size(headers: Mapping[Path, Header]) -> tuple[int, int]:
    (first, size), *_ = ((path, header.size) for path, header in headers.items())
    for other, header in headers.items():
        if header.size != size:
            raise DataError(
                f"The images have several sizes: {shown(first)} is {by(size)}, "
                f"{shown(other)} is {by(header.size)} (height x width). Say which size they "
                "shall have (--size)."
            )
    height, width = size
    if height * width > LARGE:
        scale = 64 / max(size)
        shape = f"{max(1, round(height * scale))}x{max(1, round(width * scale))}"
        raise DataError(
            f"The images have {by(size)} pixels (height x width): too many to be modelled one by "
            f"one, unless you say so. Give a --size, such as --size 64, a square from the middle, "
            f"or --size {shape}, their own shape."
        )
    return size


def _one_colour(headers: Mapping[Path, Header]) -> int:
    by_channels = {header.channels: path for path, header in headers.items()}
    if len(by_channels) > 1:
        raise DataError(
            f"Some images are grey ({shown(by_channels[1])}), some coloured "
            f"({shown(by_channels[3])}). Say what they shall be (--channels 1 or 3)."
        )
    return next(iter(by_channels))
