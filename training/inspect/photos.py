"""Which images a user has: usual ones, others to be tested by class, and masks of defects.

A folder of good images alone, or one laid out as MVTec AD's sets are (Bergmann et al. 2019):

train/good/*.png                  usual, to learn from
test/good/*.png                   usual, to test with
test/CLASS/*.png                  defects of a kind
ground_truth/CLASS/*_mask.png     where they are (white), one for each
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.cli.output import counted
from service.cli.report import MASKS, is_usual
from service.codecs.folders import USUAL
from service.errors import IafvaeError
from training.data.image_files import (
    Files,
    by,
    fault,
    image_files,
    read_fitted,
    shown,
    some,
    sound_header,
)
from training.errors import DataError

__all__ = ["LEAST", "Photos", "find_photos"]

LEAST = 40  # usual images: fewer teach nothing and rank nothing
GREY_SAMPLE = 50  # images that are looked at for colour
GREY_SIDE = 64  # pixels that they are looked at in
GREY_NOISE = 8  # levels between colours that a compression makes of grey
GOOD = USUAL[0]


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Files by name, and what they are alike.

    usual: to learn and calibrate from; usual_test: the folder's own for testing; usual_more: usual
    ones elsewhere; classes: others by class; masks: by file of a class; digests: SHA-256 of every
    file. sizes: height and width of the usual ones; channels: 1 where all are grey.
    """

    usual: Files
    usual_test: Files
    usual_more: Files
    classes: Mapping[str, Files]
    masks: Mapping[Path, Path]
    digests: Mapping[Path, str]
    sizes: Sequence[tuple[int, int]]
    channels: int
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of most usual images."""
        return Counter(self.sizes).most_common(1)[0][0]

    def lines(self) -> list[str]:
        """What was found, for people."""
        colour = "grey" if self.channels == 1 else "colour"
        size, several = f"{by(self.size)} (height x width)", len(set(self.sizes))
        size = f"of {several} sizes, most often {size}" if several > 1 else size
        lines = [f"{len(self.usual)} usual images, {size}, {colour}"]
        tested = {"good": {**self.usual_test, **self.usual_more}, **self.classes}
        if any(tested.values()):
            counts = [f"{len(files)} {name}" for name, files in tested.items() if files]
            masked = f"; {len(self.masks)} have masks" if self.masks else ""
            lines.append(f"to be tested: {', '.join(counts)}{masked}")
        return [*lines, *self.notes]


def find_photos(folder: Path, test: Path | None = None) -> Photos:
    """Look through `folder`, and `test`, whose sub-folders name classes.

    Files that cannot be read, and copies of usual images, are left out and told. Raises `DataError`
    where too few usual images are left.
    """
    files, notes = image_files(folder)
    parts = {name: name.split("/") for name in files}
    laid_out = {"train", "test"} <= {first for first, *rest in parts.values() if rest}
    usual: Files = {}
    tested: Files = {}
    passed: set[str] = set()
    for name, path in files.items():
        first, *rest = parts[name]
        if (not laid_out and MASKS not in parts[name]) or (laid_out and first == "train" and rest):
            usual[name] = path
        elif laid_out and first == "test" and rest:
            tested["/".join(rest)] = path
        elif laid_out and first != MASKS:
            passed.add(first)
    _refuse_classes(usual, folder)
    if passed:
        left = some([shown(name) for name in sorted(passed)])
        notes.append(f"neither train nor test, passed over: {left}")
    folders = {parts[name][0] for name in usual if not laid_out and parts[name][1:]}
    if named := sorted(shown(each) for each in folders if each.lower() not in USUAL):
        notes.append(f"taken as usual images too, by sub-folder: {some(named)}")
    known: dict[str, Path] = {}
    usual, sizes = _readable(usual, known, notes)
    if len(usual) < LEAST:
        raise DataError(
            f"{len(usual)} different usual images in {shown(folder)} are too few to learn from and "
            f"to compare with: {LEAST} are needed at the least, some hundreds make a start."
            + "".join(f" ({note})" for note in notes)
        )
    tested, _ = _readable(tested, known, notes)
    classes = _by_class(tested, "test")
    masks = _masks(classes, folder / MASKS)
    usual_test, usual_more = classes.pop(GOOD, {}), {}
    if test is not None:
        more, told = image_files(test)
        notes += told
        outside = {name: path for name, path in more.items() if MASKS not in name.split("/")}
        outside, _ = _readable(outside, known, notes)
        own = test.resolve().name
        others = _by_class(outside, own)
        masks |= _masks(others, (test.parent if test.name == "test" else test) / MASKS)
        others = {
            kind: {f"{own}/{name}": path for name, path in found.items()}
            for kind, found in others.items()
        }
        usual_more = others.pop(GOOD, {})
        for kind, found in others.items():
            classes[kind] = {**classes.get(kind, {}), **found}
    return Photos(
        usual=usual,
        usual_test=usual_test,
        usual_more=usual_more,
        classes=classes,
        masks=masks,
        digests={path: digest for digest, path in known.items()},
        sizes=sizes,
        channels=_channels(list(usual.values())),
        notes=tuple(notes),
    )


def _refuse_classes(usual: Files, folder: Path) -> None:
    """Raise `DataError` where sub-folders' names say that some images are good, and others not."""
    inside = [name.split("/")[:-1] for name in usual if "/" in name]
    good = {part for parts in inside for part in parts if part.lower() in USUAL}
    others = {"/".join(parts) for parts in inside if not good.intersection(parts)}
    if good and others:
        raise DataError(
            f"{shown(folder)} has sub-folders of good images ({', '.join(sorted(good))}) and "
            f"others ({some([shown(other) for other in sorted(others)])}), which would all be "
            "learned as good: give the good ones alone, and those to be judged with --test."
        )


def _by_class(files: Files, own: str) -> dict[str, Files]:
    """By the sub-folder of folder `own` that a file lies in, `own` for none; usual ones, and what
    is in them, are `GOOD`."""
    found: dict[str, Files] = {}
    for name, path in files.items():
        kind = name.rpartition("/")[0] or own
        found.setdefault(GOOD if is_usual(kind) else kind, {})[name] = path
    return found


def _readable(
    files: Files, known: dict[str, Path], notes: list[str]
) -> tuple[Files, list[tuple[int, int]]]:
    """Files with a sound header whose content is not among `known`, where its SHA-256 is put, and
    their sizes; what was left out is put into `notes`."""
    kept: Files = {}
    sizes, faults, copies = [], [], 0
    for name, path in files.items():
        try:
            header, data = sound_header(path)
        except (OSError, IafvaeError, DataError) as error:
            faults.append(fault(path, error))
            continue
        digest = hashlib.sha256(data).hexdigest()
        if digest in known:
            copies += 1
            continue
        known[digest] = path
        kept[name] = path
        sizes.append(header.size)
    if faults:
        notes.append(f"left out, {counted(len(faults), 'file')} that cannot be read: {faults[0]}")
    if copies:
        notes.append(f"left out as copies of other images: {copies}")
    return kept, sizes


def _channels(files: list[Path]) -> int:
    """1 where what was looked at is grey, also where it is stored as colour."""
    chosen = files[:: max(1, len(files) // GREY_SAMPLE)][:GREY_SAMPLE]
    for path in chosen:
        try:
            picture = read_fitted(path, 3, (GREY_SIDE, GREY_SIDE))
        except (OSError, IafvaeError):  # told where all are decoded
            continue
        planes = picture.astype(np.int16)
        if np.abs(planes - planes[:1]).max() > GREY_NOISE:
            return 3
    return 1


def _masks(classes: Mapping[str, Files], folder: Path) -> dict[Path, Path]:
    found = {}
    for kind, files in classes.items():
        for path in files.values():
            for name in (f"{path.stem}_mask.png", f"{path.stem}.png"):
                mask = folder / kind / name
                if mask.is_file():
                    found[path] = mask
                    break
    return found
