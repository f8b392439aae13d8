"""A folder of images judged, for people: an HTML page, and the same as CSV and JSON.

What is known of each image so far lies in a file of JSON lines beside the page, so that the same
call goes on where it was interrupted; it is removed when the page is written.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from service.cli.files import check, naming, write_text
from service.cli.inputs import LIMITS, Backend, Fit, discover, fault, find_images, rules, scored
from service.cli.output import csv_text
from service.cli.report_page import page
from service.codecs.folders import USUAL, read_file
from service.codecs.headers import read_header
from service.codecs.images import Shape, fit_files
from service.codecs.overlay import coloured
from service.errors import IafvaeError, InvalidInput
from service.operations import checks
from service.verdicts.ranks import detection
from service.verdicts.reference import map_notes

__all__ = ["MASKS", "ReportOptions", "is_usual", "write_report"]

Row = dict[str, Any]
ROWS = 2  # how they are written; of another program's none is taken up
CHUNK = 64  # images between two looks of the progress bar, and lost by an interruption
THUMBNAIL = 96  # pixels: longest side
COLOURS = 64  # of a picture in the page: a few kilobytes each
MASKS = "ground_truth"  # MVTec's folder of masks: no images
NO_BOX = dict.fromkeys(("left", "top", "side", "deviations", "p_value"))


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How images are judged; what is None is the model's own.

    normal: the sub-folders of usual images; pictures: of how many images, the most unusual ones,
    the page shows the picture and the map.
    """

    fit: Fit = field(default_factory=Fit)
    importance_samples: int | None = None
    seed: int | None = None
    alpha: float | None = None
    fdr: float | None = None
    normal: tuple[str, ...] = USUAL
    pictures: int = 2000


def write_report(
    backend: Backend,
    folder: Path,
    out: Path,
    options: ReportOptions,
    *,
    progress: Progress,
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge the images below `folder` and write `out` (.html), .csv and .json beside it; give what
    the last holds. `words` are put at the top of the page.

    Raises InvalidInput, with nothing written, where no image can be read.
    """
    check(out, (".html",))
    if options.fdr is not None:
        checks.alpha(options.fdr, "fdr")
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is no folder")
    files = [f for f in find_images([folder]) if MASKS not in f.relative_to(folder).parts]
    if not files:
        raise InvalidInput(f"{folder} holds no images but masks")
    manifest = backend.model()["manifest"]
    kept = out.with_suffix(".partial.jsonl")
    # What decides the rows; rows of anything else are of no use.
    asked = json.dumps([ROWS, manifest, str(folder.resolve()), asdict(options)], sort_keys=True)
    identity = json.dumps({"report": hashlib.sha256(asked.encode()).hexdigest()}).encode()
    rows = _known(kept, identity)
    todo = [f for f in files if rows.get(_name(f, folder), {}).get("stamp") != _stamp(f)]
    task = progress.add_task("judging", total=len(files), completed=len(files) - len(todo))
    try:
        with naming(kept), kept.open("ab") as file:
            for row in _judged(backend, manifest, folder, todo, options):
                rows[row["file"]] = row
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                progress.advance(task)
    finally:
        if not rows:
            kept.unlink(missing_ok=True)
    found = [rows[_name(f, folder)] for f in files]
    if all("error" in row for row in found):
        kept.unlink(missing_ok=True)
        why = f"{found[0]['file']}: {found[0]['error']}"
        raise InvalidInput(f"none of {len(found)} images in {folder} can be judged: {why}")
    document = _document(manifest, folder, found, options)
    # Of the most unusual ones.
    most = [rows[row["file"]] for row in document["results"][: options.pictures]]
    pictures = {row["file"]: (row["picture"], row["map"]) for row in most}
    write_text(page(document, pictures, words), out)
    write_text(_csv(document), out.with_suffix(".csv"))
    write_text(json.dumps(document, indent=1, ensure_ascii=False), out.with_suffix(".json"))
    kept.unlink(missing_ok=True)
    return document


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _known(kept: Path, identity: bytes) -> dict[str, Row]:
    """Rows by file of an interrupted call that asked for the same; else `kept` is begun anew."""
    lines = kept.read_bytes().splitlines() if kept.exists() else []
    if not lines or lines[0] != identity:
        kept.write_bytes(identity + b"\n")
        return {}
    rows = {}
    for line in lines[1:]:
        try:
            row = json.loads(line)
        except ValueError:  # torn by the interruption
            continue
        rows[row["file"]] = row
    with kept.open("ab") as file:
        file.write(b"\n")  # ends a torn line
    return rows


def _stamp(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError:  # a link to nothing, or gone meanwhile
        return []
    return [found.st_size, found.st_mtime_ns]


def _judged(
    backend: Backend,
    manifest: Mapping[str, Any],
    folder: Path,
    files: Sequence[Path],
    options: ReportOptions,
) -> Iterator[Row]:
    shape, shown = rules(manifest, Fit(resize=True, convert=True))
    how = {name: getattr(options, name) for name in ("importance_samples", "seed", "alpha")}
    for part in scored(backend, files, options.fit, chunk=CHUNK, **how):
        maps, boxes = [""] * len(part.images), [[NO_BOX]] * len(part.images)
        if manifest["calibration"] is not None and len(part.images):
            deviations, boxes = backend.anomalies(part.images, seed=options.seed, boxes=1)
            grey = part.images.mean(axis=1, dtype=np.float32)
            maps = [_palette(each) for each in coloured(grey, deviations)]
        evidence = zip(boxes, maps, strict=True)
        for row in part.rows:
            file = Path(row["file"])
            named = {
                "file": _name(file, folder),
                "class": _name(file.parent, folder).removeprefix("."),
                "stamp": _stamp(file),
            }
            if "error" in row:
                yield {**row, **named}
                continue
            (box,), map_ = next(evidence)
            try:
                picture = _thumbnail(file, shape, shown)
            except (OSError, IafvaeError) as error:  # gone, or another, since it was scored
                yield {**named, "error": fault(error)}
                continue
            yield {**row, **named, "picture": picture, "box": box, "map": map_}


def _thumbnail(file: Path, shape: Shape, fit: Fit) -> str:
    """What the model saw of a file, at the file's own sharpness as far as a page needs it."""
    data = read_file(file)
    header = read_header(data, file.name)
    height, width = header.size
    sides = (height / shape[1], width / shape[2])
    factor = max(1.0, min(*sides, THUMBNAIL / max(shape[1:])))
    size = (header.channels, round(factor * shape[1]), round(factor * shape[2]))
    return _palette(fit_files([data], size, fit, LIMITS, [file.name]).images[0])


def _palette(pixels: NDArray[np.uint8]) -> str:
    """Pixels [C, H, W] as the base64 of a PNG of few colours."""
    from PIL import Image

    plain = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    picture, file = Image.fromarray(plain), io.BytesIO()
    (picture if picture.mode == "L" else picture.quantize(COLOURS)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _document(
    manifest: Mapping[str, Any], folder: Path, rows: Sequence[Row], options: ReportOptions
) -> dict[str, Any]:
    good = [row for row in rows if "error" not in row]
    if options.fdr is not None:
        discover(good, options.fdr)
    good.sort(key=lambda row: (_or(row["p_value"], 2.0), _or(row["log_likelihood_nats"], 0.0)))
    hidden = {"picture", "map", "stamp", "alpha", "certified_alpha", "calibration"}
    calibration, alpha = manifest["calibration"], good[0]["alpha"]
    verdicts = [row["anomalous"] for row in good]
    return {
        "folder": folder.name or str(folder.resolve()),
        "model": manifest["name"],
        "version": manifest["version"],
        "image": manifest["image"],
        "alpha": alpha,
        "certified_alpha": good[0]["certified_alpha"],
        "fdr": options.fdr,
        **{name: good[0][name] for name in ("estimator", "importance_samples", "seed")},
        "calibration": calibration and {k: calibration[k] for k in ("split", "images", "date")},
        "notes": map_notes(len(manifest["latent"]["groups"])) if calibration else (),
        "images": len(good),
        "anomalous": verdicts.count(True),
        "ordinary": verdicts.count(False),
        "undecided": verdicts.count(None),
        "unreadable": [
            {"file": row["file"], "error": row["error"]} for row in rows if "error" in row
        ],
        "classes": _classes(good, options.normal),
        "results": [{k: v for k, v in row.items() if k not in hidden} for row in good],
    }


def is_usual(folder: str, normal: Sequence[str] = USUAL) -> bool:
    """Whether sub-folder `folder` ("good/monday") is, or lies in, one of `normal`, by its name or
    by its path."""
    path = PurePosixPath(folder.lower())
    names = {*path.parts, str(path), *map(str, path.parents)}
    return not names.isdisjoint(name.lower() for name in normal)


def _or(value: float | None, instead: float) -> float:
    return instead if value is None else value


def _classes(rows: Sequence[Row], normal: Sequence[str]) -> list[dict[str, Any]]:
    """What was found in each sub-folder, and how well it is told from the usual images'."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row["class"]].append(row)
    groups = {name: by_class[name] for name in sorted(by_class) if is_usual(name, normal)}
    usual = [row for each in groups.values() for row in each]
    odd = {name: each for name, each in sorted(by_class.items()) if name not in groups}
    if usual and len(odd) > 1:
        odd["all of these"] = [row for each in odd.values() for row in each]
    groups |= odd
    if list(groups) == [""]:
        return []  # no sub-folders
    return [
        {
            "class": name,
            "images": len(each),
            "anomalous": sum(row["anomalous"] is True for row in each),
            "undecided": sum(row["anomalous"] is None for row in each),
            "normal": name not in odd,
            "detection": _detection(each, usual) if usual and name in odd else {},
        }
        for name, each in groups.items()
    ]


def _detection(odd: Sequence[Row], usual: Sequence[Row]) -> dict[str, Any]:
    """AUROC, AUPR, FPR at 95% TPR with intervals, and the ROC's corners, by score."""
    found: dict[str, Any] = {}
    of_usual = _scores(usual)
    for name, scores in _scores(odd).items():
        high, low = (each[~np.isnan(each)] for each in (scores, of_usual[name]))
        if not len(high) or not len(low):
            continue
        figures = detection(high, low)
        found[name] = {kind: asdict(figure) for kind, figure in figures.items()}
        found[name]["roc"] = _roc(high, low)
    return found


def _scores(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Three scores of each row, larger where it is more unusual; NaN where one is missing."""
    numbers = [(r["p_value"], r["log_likelihood_nats"], r["box"]["deviations"]) for r in rows]
    p_value, nats, deviations = np.array(numbers, np.float64).T  # None becomes nan
    return {"verdict": -p_value, "likelihood alone": -nats, "largest box": np.abs(deviations)}


def _roc(high: NDArray[np.float64], low: NDArray[np.float64]) -> list[list[float]]:
    """Points [false-alarm rate, hit rate] of the ROC curve, from (0, 0) to (1, 1)."""
    levels = np.unique(np.concatenate([high, low]))[::-1]
    rates = [
        1 - np.searchsorted(np.sort(each), levels, side="left") / len(each) for each in (low, high)
    ]
    return [[0.0, 0.0], *np.round(np.column_stack(rates), 6).tolist()]


def _csv(document: Mapping[str, Any]) -> str:
    flat = []
    for row in document["results"]:
        box = {f"box_{k}": v for k, v in row["box"].items()}
        flat.append({k: v for k, v in row.items() if k != "box"} | box)
    flat += document["unreadable"]
    return csv_text(flat)
