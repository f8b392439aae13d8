"""The way from a folder of good images to a bundle, a report, and words on what it is good for.

OUT/inspect.json               the usual images by purpose, and their SHA-256: for ever
OUT/images/SPLIT/good          links to them
OUT/run                        the training; called again, `inspect` trains it further
OUT/.trained                   while that is not judged yet: a call then goes on from there
OUT/bundle                     what `iafvae serve` and `iafvae score` take
OUT/test, OUT/planted          links to the images to be tested; planted defects
OUT/report.html, planted.html  both judged
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, track

from service.cli.inputs import Fit
from service.cli.local import LocalClient
from service.cli.output import counted
from service.cli.report import ReportOptions, write_report
from service.codecs.folders import EXTENSIONS
from service.codecs.images import fit_array
from service.codecs.png import encode_png
from service.errors import IafvaeError
from service.verdicts.conformal import expected_rate
from service.verdicts.ranks import Figure, pooled_detection
from training.config import Runtime, overridden
from training.data import FOLDER_PREFIX
from training.data.image_files import Files, fault, read_fitted, shown
from training.errors import DataError
from training.evaluate.anomaly_sets import planted_defects
from training.export.revise import recalibrate
from training.export.run import export_run
from training.files import write_json
from training.fit.fit import fit
from training.inspect.photos import Photos, find_photos
from training.inspect.plan import Plan, counts, crossed, divided, plan_for, planned
from training.inspect.words import Facts, learned, words
from training.runs.directory import CONFIG_FILE, is_left, locked, read_config

__all__ = ["Inspection", "inspect_folder"]

Pixels = NDArray[np.uint8]

SIDES = (2, 4, 8, 16)  # pixels of the model's images: of planted defects
PLANTED = 60  # images that defects are planted in, at most
FINER = 4  # times the model's size at the most: where the photos have it, defects are planted in it
DRAWN = 32  # samples that are looked at
CHUNK = 64  # images whose maps are made at once
PLAN = "inspect.json"
TRAINED = ".trained"


@dataclass(frozen=True)
class Inspection:
    """How it ended: "done", or the signal that stopped the training; and what is to be said."""

    reason: str
    lines: Sequence[str]


def inspect_folder(
    folder: Path,
    out: Path,
    *,
    test: Path | None = None,
    false_alarms: float = 0.01,
    minutes: float = 15.0,
    runtime: Runtime,
    console: Console,
    progress: Progress | None = None,
) -> Inspection:
    """Learn what the images in `folder` look like, and judge those that were held out, and `test`.

    Raises `DataError` where the images do not suffice, or `out` holds something else, before
    anything is written.
    """
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    for looked in (folder, test):
        if looked is not None and out.resolve().is_relative_to(looked.resolve()):
            raise DataError(
                f"{shown(out)} lies in {shown(looked)}, whose images it would become: give another "
                "--out."
            )
        if looked is not None and looked.resolve().is_relative_to(out.resolve()):
            raise DataError(
                f"{shown(looked)} lies in {shown(out)}, whose files are made anew each time: move "
                "the images elsewhere."
            )
    photos = find_photos(folder, test)
    for line in photos.lines():
        say(line)
    run, progress = out / "run", progress or Progress(disable=True)
    _refuse_others(out)
    with locked(out):
        begun = (run / CONFIG_FILE).exists()
        trained = begun and (out / TRAINED).exists()
        if begun:
            sets = _sets_before(out, photos)
            plan = planned(read_config(run), minutes, runtime)
            further = f"is trained further, for {plan.minutes:.3g} minutes"
            say(f"{run} {'is trained, but was not judged yet' if trained else further}")
        else:
            share = counts(len(photos.usual), false_alarms, given_test=bool(photos.usual_test))
            sets = divided(photos.usual, share)
            if photos.usual_test:
                sets["test"] = photos.usual_test
            say("measuring how fast this machine trains")
            plan = plan_for(
                photos.size, photos.channels, share["train"], minutes=minutes, runtime=runtime
            )
            say(f"the model: {plan.line()}")
        sets, broken = _prepare(out, sets, photos, plan, console)
        if broken:
            say(f"left out, {counted(len(broken), 'broken file')}: {broken[0]}")
        if not trained:
            data = {"name": f"{FOLDER_PREFIX}{(out / 'images').absolute()}", "size": plan.size}
            result = fit(
                overridden(plan.config, {"data": {**data, "channels": photos.channels}}),
                run,
                runtime=plan.runtime,
                data_dir=None,
                resume=begun,
                budget_minutes=plan.minutes,
                console=console,
            )
            if result.reason not in ("done", "budget"):
                return Inspection(result.reason, ["stopped and saved: call it again to go on"])
            (out / TRAINED).touch()
        say("trained; now it is exported, calibrated and tried, which takes some minutes")
        bare = out / ".uncalibrated"  # what is served never lacks a calibration
        with progress:
            kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in folder.resolve().name)
            name = kept.strip("-")[:64] or "model"
            try:
                export_run(run, bare, name=name, calibrate=False, progress=progress)
                recalibrate(
                    bare,
                    out / "bundle",
                    str(out / "images" / "calibration"),
                    resize=True,
                    crossed=crossed(len(sets["calibration"]), false_alarms),
                    version="1.0.0",
                    progress=progress,
                )
            finally:
                shutil.rmtree(bare, ignore_errors=True)
            lines = _judge(photos, sets, out, plan, false_alarms, progress)
        (out / TRAINED).unlink()
        return Inspection("done", lines)


# Images.


def _refuse_others(out: Path) -> None:
    """`out` is new, empty, or an inspection."""
    new = not out.exists() or (out.is_dir() and all(map(is_left, out.iterdir())))
    if not new and not (out / PLAN).is_file():
        raise DataError(f"{out} exists and is no inspection: give another --out.")
    for folder in (out / "images", out / "test"):  # links, which are made anew
        found = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
        own = [path for path in found if not path.is_symlink()]
        if len(own) < len(found) and own:
            raise DataError(
                f"{shown(own[0])} would be lost, as what is in {shown(folder)} is made anew: move "
                "it elsewhere; --test takes the folder where it then lies."
            )


def _sets_before(out: Path, photos: Photos) -> dict[str, Files]:
    """The usual images by purpose as an earlier call divided them, whatever is asked for now: what
    was learned from is never tested with."""
    usual = {**photos.usual, **photos.usual_test}
    try:
        before: dict[str, dict[str, str]] = json.loads((out / PLAN).read_bytes())
        known = {name: digest for files in before.values() for name, digest in files.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{out / PLAN} cannot be read ({error}): give another --out.") from error
    if known != {name: photos.digests[path] for name, path in usual.items()}:
        raise DataError(f"{out} holds an inspection of other images: give another --out.")
    return {purpose: {name: usual[name] for name in files} for purpose, files in before.items()}


def _prepare(
    out: Path, sets: Mapping[str, Files], photos: Photos, plan: Plan, console: Console
) -> tuple[dict[str, Files], list[str]]:
    """Links to the usual images by purpose; gives those that can be read, and what is wrong with
    the others."""
    out.mkdir(parents=True, exist_ok=True)
    plan_of = {
        purpose: {name: photos.digests[path] for name, path in files.items()}
        for purpose, files in sets.items()
    }
    write_json(out / PLAN, plan_of)  # first: a call again may go on
    shutil.rmtree(out / "images", ignore_errors=True)
    faults, sound = [], {purpose: dict[str, Path]() for purpose in sets}
    todo = [(purpose, *each) for purpose, files in sets.items() for each in files.items()]
    silent = not console.is_terminal
    for purpose, name, path in track(todo, "reading", console=console, disable=silent):
        try:
            read_fitted(path, photos.channels, plan.size)
        except (OSError, IafvaeError) as error:
            faults.append(fault(path, error))
            continue
        _link(out / "images" / purpose / "good", path)
        sound[purpose][name] = path
    return sound, faults


def _link(folder: Path, path: Path) -> None:
    """A link to a file that lies anywhere; a copy where there are no links."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    try:
        target.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, target)


# Verdicts.


def _judge(
    photos: Photos,
    sets: Mapping[str, Files],
    out: Path,
    plan: Plan,
    false_alarms: float,
    progress: Progress,
) -> list[str]:
    """Write the reports; give the words that stand at their top."""
    usual = {**sets["test"], **photos.usual_more}
    for name in ("test", "planted"):
        shutil.rmtree(out / name, ignore_errors=True)
    for kind, files in {"good": usual, **photos.classes}.items():
        for path in files.values():
            _link(out / "test" / kind, path)
    with LocalClient.open(out / "bundle", None, "cpu") as model:
        spec = model.model()["manifest"]["calibration"]
        alpha = max(false_alarms, 1 / (1 + spec["images"]))
        options = ReportOptions(fit=Fit(resize=True, convert=True), alpha=alpha)
        finer = min(own // side for own, side in zip(photos.size, plan.size, strict=True))
        pixels, fine = _pixels(usual, plan.size, photos.channels, max(1, min(FINER, finer)))
        _plant(out, pixels, fine)
        planted = write_report(
            model, out / "planted", out / "planted.html", options, progress=progress
        )
        drawn = model.sample(DRAWN, seed=0, output="mean").array
        facts = Facts(
            photos=photos,
            size=plan.size,
            calibration=spec["images"],
            crossed=spec["folds"] > 1,
            false_alarms=false_alarms,
            alpha=alpha,
            planted=planted,
            training=learned(out / "run"),
            again=(pixels, model.reconstruct(pixels, seed=None, output="mean").images),
            drawn=drawn,
            pixels=_detection(model, photos, plan.size),
        )
        told = list(words(facts))
        tested = write_report(
            model, out / "test", out / "report.html", options, progress=progress, words=told
        )
    written = f"{out / 'report.html'}, {out / 'planted.html'}"
    next_ = f"judge other images with: iafvae report FOLDER --bundle {out / 'bundle'} --resize"
    return [*told, *_on_classes(tested), written, next_]


def _on_classes(tested: Mapping[str, Any]) -> Iterator[str]:
    rate = expected_rate(tested["alpha"], tested["calibration"]["images"])
    for each in tested["classes"]:
        told = f"{each['class']}: {each['anomalous']} of {each['images']} called anomalous"
        if each["normal"]:
            told += f", {rate * each['images']:.2g} expected"
        if "verdict" in each["detection"]:
            figure = each["detection"]["verdict"]["auroc"]
            ends = figure["interval"]
            told += f", AUROC {figure['value']:.3f}"
            told += f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        yield told


def _detection(model: LocalClient, photos: Photos, size: tuple[int, int]) -> Figure | None:
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


def _pixels(
    files: Files, size: tuple[int, int], channels: int, finer: int
) -> tuple[Pixels, Pixels]:
    """The first of the files that can be read, uint8 [N, C, H, W], and `finer` times as large."""
    found = []
    for path in list(files.values())[:PLANTED]:
        with suppress(OSError, IafvaeError):  # told in the report
            sizes = (size, (finer * size[0], finer * size[1]))
            found.append([read_fitted(path, channels, each) for each in sizes])
    if not found:
        raise DataError("none of the usual test images can be read")
    pixels, fine = zip(*found, strict=True)
    return np.stack(pixels), np.stack(fine)


def _plant(out: Path, pixels: Pixels, fine: Pixels) -> None:
    """Usual test images in the model's size, and the same with defects of several.

    Defects lie in the `fine` images, anywhere between the model's pixels, as a photo's own do.
    """
    size = pixels.shape[2:]
    finer = fine.shape[2] // size[0]

    def scaled(images: Pixels) -> NDArray[np.int16]:
        shape = (images.shape[1], *size)
        return fit_array(images, shape, Fit(resize=True)).images.astype(np.int16)

    kinds, plain = {"good": pixels}, scaled(fine)
    for side in SIDES:
        if side <= min(size) // 2:
            changed = scaled(planted_defects(fine, 0, side * finer)[0]) - plain
            kinds[f"planted {side}x{side}"] = (pixels + changed).clip(0, 255).astype(np.uint8)
    for kind, images in kinds.items():
        folder = out / "planted" / kind
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            (folder / f"{i:03d}.png").write_bytes(encode_png(image))
