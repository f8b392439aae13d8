"""How much of what: the images of each purpose, the model's size, its settings.

Of the usual images some are learned from, some tell whether the training goes well, some make the
reference that verdicts compare with, some test it.
"""

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from training.config import UNENDING_EPOCHS, RunConfig, Runtime, for_images, run_preset
from training.data import FOLDER_PREFIX, ImageData
from training.data.image_files import Files
from training.fit.trainer import Trainer
from training.overrides import with_settings

__all__ = [
    "Plan",
    "certified_images",
    "counts",
    "crossed",
    "divided",
    "least_images",
    "plan_for",
    "planned",
]

SIDES = (128, 96, 64, 48, 32, 24)  # of the model's images, the longer one, in pixels
SMALLEST = 16  # of photos that are smaller than all of these
STEP = 8  # both sides are multiples of it, so that each level halves the one before
TOP = 4  # pixels of the coarsest level's shorter side
# Images that the training should present, at the least: a ladder that has seen fewer draws noise.
WANTED = 20_000
FIT_SHARE = 0.7  # of the minutes; calibration and report take the rest
PRESET = "cifar10-small"
# A ladder that learns quickly from small batches, with a likelihood that is cheap to compute.
SETTINGS = (
    "model.channels=32",
    "model.z_channels=8",
    "model.head=shuffle",
    "model.residual_scale=0.5",
    "model.posterior.hidden_layers=1",
    "data.horizontal_flips=false",
    "optim.kind=adam",
    "optim.learning_rate=0.006",
    "optim.warmup_steps=100",
    "optim.schedule=budget",
    "optim.ema_decay=0.99",
    "train.free_bits_nats=0.01",
    f"train.epochs={UNENDING_EPOCHS}",
)
BATCH = 32
COMPILED_MINUTES = 30.0  # below so many minutes, compiling costs more than it saves


def least_images(false_alarms: float) -> int:
    """How many calibration images have a p-value as small as that rate."""
    return math.ceil(1 / false_alarms - 1e-9) - 1


def certified_images(false_alarms: float) -> int:
    """How many it takes for a threshold that holds the rate with 95% confidence."""
    return math.ceil(math.log(0.05) / math.log1p(-false_alarms))


def counts(images: int, false_alarms: float, *, given_test: bool) -> dict[str, int]:
    """How many usual images serve what, by purpose.

    The reference has a fifth of them, and where the rate of false alarms asks for more, so many
    that two of their p-values are as small as it, but no more than a third.
    """
    wanted = max(0.2 * images, 2 * least_images(false_alarms) + 1)
    calibration = min(round(wanted), images // 3, 5000)
    validation = min(max(4, images // 20), 500)
    test = 0 if given_test else min(max(5, images // 10), 1000)
    return {
        "train": images - validation - calibration - test,
        "validation": validation,
        "calibration": calibration,
        "test": test,
    }


def divided(files: Files, share: Mapping[str, int]) -> dict[str, Files]:
    """Files by purpose: in an order that their names alone decide."""
    order = sorted(files, key=lambda name: hashlib.sha256(name.encode(errors="replace")).digest())
    found, first = {}, 0
    for purpose, count in share.items():
        names = order[first : first + count]
        found[purpose] = {name: files[name] for name in sorted(names)}
        first += count
    return found


def crossed(calibration: int, false_alarms: float) -> bool:
    """Whether images are so few that each serves as both parts of a reference: in one half of
    them the rate could not be held with certainty."""
    return calibration < 2 * certified_images(false_alarms)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The model's images `size` (height, width), its run, and how it was chosen."""

    size: tuple[int, int]
    config: RunConfig
    runtime: Runtime
    minutes: float
    images_per_second: float

    def line(self) -> str:
        """For people."""
        height, width = self.size
        levels = len(self.config.model.levels)  # type: ignore[union-attr]
        seen = self.images_per_second * self.minutes * 60
        return (
            f"a ladder of {levels} levels at {height}x{width}, for about {self.minutes:.3g} "
            f"minutes at {self.images_per_second:.0f} images/s: about {seen:,.0f} images seen"
        )


def plan_for(
    size: tuple[int, int],
    channels: int,
    train: int,
    *,
    minutes: float,
    runtime: Runtime,
) -> Plan:
    """The largest model that this machine trains well enough in the minutes; its speed is measured.

    size: height and width of the photos.
    """
    runtime = _for_minutes(runtime, minutes)
    sides = [side for side in SIDES if side <= max(size)] or [SMALLEST]
    sizes = list(dict.fromkeys(scaled(size, side) for side in sides))
    share = FIT_SHARE * minutes
    for chosen in reversed(sizes):  # the smallest first: the next costs by its pixels, at the most
        config = configured(chosen, channels, train)
        seconds = _seconds_an_image(config, runtime)
        larger = sizes[max(0, sizes.index(chosen) - 1)]
        growth = math.prod(larger) / math.prod(chosen)
        if share * 60 < WANTED * seconds * growth:
            break
    return Plan(
        size=chosen,
        config=config,
        runtime=runtime,
        minutes=share,
        images_per_second=1 / seconds,
    )


def planned(config: RunConfig, minutes: float, runtime: Runtime) -> Plan:
    """For going on with a run."""
    _, height, width = config.model.image_shape
    return Plan(
        size=(height, width),
        config=config,
        runtime=_for_minutes(runtime, minutes),
        minutes=FIT_SHARE * minutes,
        images_per_second=0.0,
    )


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The photos' shape with a longer side of about `side`, in steps of 8 pixels."""
    factor = side / max(size)
    height, width = (max(STEP, STEP * round(factor * s / STEP)) for s in size)
    return height, width


def configured(size: tuple[int, int], channels: int, train: int) -> RunConfig:
    """The run of a model for images of that size; `train` images have to fill a batch."""
    levels = [1] * max(1, int(math.log2(min(size) / TOP)))
    batch = min(BATCH, 2 ** int(math.log2(max(1, train // 2))))
    config = with_settings(
        run_preset(PRESET),
        [*SETTINGS, f"model.levels={levels}", f"optim.batch_size={batch}"],
    )
    return for_images(config, (channels, *size))


def _for_minutes(runtime: Runtime, minutes: float) -> Runtime:
    if runtime.compile == "auto" and minutes < COMPILED_MINUTES:
        return replace(runtime, compile="off")
    return runtime


def _seconds_an_image(config: RunConfig, runtime: Runtime) -> float:
    """Measured over three steps on noise, after a first one."""
    batch, shape = config.optim.batch_size, config.model.image_shape
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
    trainer = Trainer(config, runtime, ImageData(pixels, FOLDER_PREFIX, "train"))
    trainer.train_step()
    since = time.perf_counter()
    for _ in range(3):
        trainer.train_step()
    return (time.perf_counter() - since) / (3 * batch)
