"""What a model can be trusted with and what not, in words, from what was measured of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.verdicts.ranks import Figure
from training.inspect.photos import Photos
from training.inspect.plan import certified_images, least_images
from training.runs.metrics import read_metrics

__all__ = ["Facts", "Training", "learned", "words"]

FALLING = 0.01  # of the bits, over the last third: it was still learning
FOUND = 0.5  # of planted defects of a size: it "finds" them
TRUSTED = 0.9
EXPLAINED = 0.5  # of the photos' variance: less is a blur
ROUGH = 1.5  # times as rough as the photos: noise
FEW = 500  # images to learn from
CUT = 0.02  # of a photo: less is not worth a word

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Bits per dimension of the validation images: at two thirds of the run, at its end, least."""

    before: float
    last: float
    least: float

    @property
    def falling(self) -> bool:
        """Whether more training would have helped."""
        return self.last < (1 - FALLING) * self.before

    @property
    def overfitted(self) -> bool:
        """Whether it was better earlier: it has begun to learn single images by heart."""
        return self.last > (1 + FALLING) * self.least


def learned(run: Path) -> Training | None:
    """How the validation went; None where it was looked at less than thrice."""
    records = [r for r in read_metrics(run) if r["kind"] == "validation" and r["bits_per_dim"]]
    if len(records) < 3:
        return None
    bits = [r["bits_per_dim"] for r in records]
    end = 2 / 3 * records[-1]["step"]
    before = next(b for r, b in zip(records, bits, strict=True) if r["step"] >= end)
    return Training(before=before, last=bits[-1], least=min(bits))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the words are made of.

    size: height and width of the model's images; calibration: how many images verdicts compare
    with; crossed: each was ranked by a density of the others; alpha: what was judged at; planted:
    the report on planted defects; again: usual test images and their reconstructions; drawn:
    samples; pixels: of the maps, where there are masks.
    """

    photos: Photos
    size: tuple[int, int]
    calibration: int
    crossed: bool
    false_alarms: float
    alpha: float
    planted: Mapping[str, Any]
    training: Training | None
    again: tuple[Pixels, Pixels]
    drawn: Pixels
    pixels: Figure | None

    @property
    def each(self) -> float:
        """How many of the photos' pixels one of the model's is."""
        return min(own / side for own, side in zip(self.photos.size, self.size, strict=True))

    @property
    def cut(self) -> list[float]:
        """The share of each usual photo that is cut off around the middle."""
        whole = math.prod(self.size)
        return [
            1 - whole * min(h / self.size[0], w / self.size[1]) ** 2 / (h * w)
            for h, w in self.photos.sizes
        ]


def words(facts: Facts) -> Iterator[str]:
    """Sentences for people, the judgement last."""
    yield _of_images(facts)
    yield _of_calibration(facts)
    troubles = list(_troubles(facts))
    yield from troubles
    sizes = _found(facts)
    yield _of_defects(facts, sizes)
    if facts.pixels is not None:
        ends = facts.pixels.interval
        between = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        yield (
            f"Of the pixels in your masks the map tells defects from the rest with AUROC "
            f"{facts.pixels.value:.3f}{between}."
        )
    yield _judgement(facts, sizes, bool(troubles))


def _of_images(facts: Facts) -> str:
    (height, width), each = facts.size, facts.each
    text = f"The model sees {height}x{width} pixels, as many as your photos have."
    if each != 1:
        text = (
            f"The model sees {height}x{width} pixels: a pixel of the model is {each:.3g} of yours; "
            "what is smaller it cannot see."
        )
    cut = facts.cut
    usual, most = float(np.median(cut)), max(cut)
    if most >= CUT:
        text += (
            f" Nor does it see what is cut off around the middle: {usual:.0%} of a photo, "
            f"{most:.0%} at the most."
        )
    return text


def _of_calibration(facts: Facts) -> str:
    n, rate = facts.calibration, facts.false_alarms
    if n < least_images(rate):
        reached = f"{math.ceil(1000 * facts.alpha) / 1000:g}"  # rounded up: below it nothing is
        return (
            f"False alarms: {n} images to compare with have no p-value below {1 / (n + 1):.2g}, so "
            f"that {rate:g} is out of reach; verdicts here are at {reached}, and those of other "
            f"images with --alpha {reached} (`iafvae report`, `iafvae score`). About "
            f"{3 * least_images(rate)} good images in all would do."
        )
    certain = certified_images(rate)
    average = (
        f", on the average over such sets of images; to be certain takes {2 * certain} set aside"
    )
    if n >= certain and not facts.crossed:
        average = ""
    return f"False alarms: {rate:g} of usual images, by comparison with {n} images{average}."


def _troubles(facts: Facts) -> Iterator[str]:
    training, usual = facts.training, len(facts.photos.usual)
    if usual < FEW:
        yield f"Few images: {usual}. What is rare among them but in order looks unusual."
    if training is None:
        yield "Undertrained: not three times through the images. Give it more --minutes."
    elif training.falling:
        yield (
            f"Undertrained: the validation images' bits were still falling at the end "
            f"({training.before:.3f} to {training.last:.3f} in the last third). Call it again with "
            "the same --out, and it is trained further."
        )
    elif training.overfitted:
        yield (
            f"Overfitted: {training.last:.3f} bits on validation images at the end, "
            f"{training.least:.3f} before. More images help, fewer --minutes a little."
        )
    explained = _explained(*facts.again)
    if explained < EXPLAINED:
        yield (
            f"Its pictures of your images have {max(explained, 0):.0%} of what varies in them: it "
            "has learned little."
        )
    rough = _roughness(facts.drawn) / max(_roughness(facts.again[0]), 1e-6)
    if rough > ROUGH:
        yield f"What it draws is {rough:.1f} times as rough as your images: noise."


def _explained(images: Pixels, again: Pixels) -> float:
    """The share of the pixels' variance, around the mean image, that reconstructions have."""
    x, y = images.astype(np.float64), again.astype(np.float64)
    varying = np.square(x - x.mean(axis=0)).sum()
    return float(1 - np.square(x - y).sum() / max(varying, 1e-9))


def _roughness(images: Pixels) -> float:
    """Mean difference of neighbours."""
    x = images.astype(np.float64)
    across, down = np.abs(np.diff(x, axis=3)), np.abs(np.diff(x, axis=2))
    return float(across.mean() + down.mean())


def _found(facts: Facts) -> dict[int, float]:
    """Side of planted defects in the model's pixels -> share called anomalous."""
    found = {}
    for each in facts.planted["classes"]:
        kind, _, size = each["class"].partition(" ")
        if kind == "planted":
            found[int(size.partition("x")[0])] = each["anomalous"] / each["images"]
    return dict(sorted(found.items()))


def _of_defects(facts: Facts, sizes: Mapping[int, float]) -> str:
    parts = [
        f"{share:.0%} of {side * facts.each:.3g}x{side * facts.each:.3g} pixels"
        for side, share in sizes.items()
    ]
    return (
        f"Of planted squares, half the brightness range off, it called anomalous: "
        f"{', '.join(parts)} (in your pixels)."
    )


def _judgement(facts: Facts, sizes: Mapping[int, float], troubled: bool) -> str:
    each = facts.each
    found: list[float] = []
    for side, share in reversed(list(sizes.items())):  # a size is trusted where all larger ones are
        if share < TRUSTED:
            break
        found.insert(0, side * each)
    seldom = [side * each for side, share in sizes.items() if share < FOUND]
    if not found:
        much = "Do not rely on it for defects yet" if seldom else "It finds some defects, not all"
        return f"{much}: look at the maps, and give it more --minutes or more images."
    words = f"Trust it with plain defects of {found[0]:.3g} pixels and more"
    if smaller := [side for side in seldom if side < found[0]]:
        words += f"; not with ones of {smaller[-1]:.3g} or less"
    careful = ", as far as the above allows" if troubled else ""
    return (
        f"{words}{careful}. Fainter ones, and images of another camera or light, it was not tried "
        "on: test it with your own (--test)."
    )
