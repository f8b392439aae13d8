"""What the commands of `iafvae` begin with: who computes, image files as arrays and scores."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import httpx
import numpy as np
import typer
from numpy.typing import NDArray

from service.bundle import ImageSpec
from service.cli.progress import shown
from service.client import Client, ScoreTable
from service.client.results import NUMBERS
from service.codecs.folders import EXTENSIONS, list_images, printable, read_file
from service.codecs.images import Fit, Fitted, PixelLimits, Shape, fit_files
from service.codecs.npy import decode_npy, npy_prefix
from service.engine.options import Provider
from service.errors import IafvaeError, InvalidInput
from service.estimators import Estimates
from service.operations import checks
from service.verdicts.decisions import REASONS, discovered, fdr_notes
from service.verdicts.reference import map_notes

if TYPE_CHECKING:
    from service.cli.local import LocalClient

__all__ = [
    "STREAMED",
    "Backend",
    "Fit",
    "Scored",
    "discover",
    "fault",
    "find_images",
    "in_chunks",
    "mapped",
    "number",
    "open_backend",
    "read_all",
    "read_latents",
    "rules",
    "say",
    "say_undecided",
    "score_files",
    "scored",
]

STREAMED = 1024  # more images than this are drawn piece by piece, into a file
CHUNK = 256  # images in flight: bounds memory; a server may take fewer in a request
LIMITS = PixelLimits(image=2**27, total=2**27)
# What a request says of all its images.
OF_ALL = ("estimator", "importance_samples", "seed", "alpha", "certified_alpha", "calibration")
Backend: TypeAlias = "Client | LocalClient"
T = TypeVar("T", bound=np.generic)
Row = dict[str, Any]


def open_backend(
    bundle: Path | None, url: str | None, model: str | None, provider: Provider | None
) -> Backend:
    """The server at `url` (a key in IAFVAE_KEY is sent), or the bundle loaded in this process."""
    if url is not None:
        if bundle is not None or provider is not None:
            raise InvalidInput("--url excludes --bundle and --provider: the server has its own")
        try:
            address = httpx.URL(url)
            address.host.encode("idna")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidInput(f"--url {url!r} is not a URL: {error}") from None
        if address.scheme not in ("http", "https"):
            raise InvalidInput(f"--url {url!r} begins with neither http:// nor https://")
        key = os.environ.get("IAFVAE_KEY", "")
        if not (key.isascii() and key.isprintable()):
            raise InvalidInput("IAFVAE_KEY is not a key as `iafvae key` prints it")
        return Client(url, model=model, key=key)
    from service.cli.local import LocalClient

    with shown("loading the model"):
        return LocalClient.open(bundle, model, provider)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and image files below folders in sorted order. Raises InvalidInput."""
    found: list[Path] = []
    for path in paths:
        try:
            kind = path.stat().st_mode
        except FileNotFoundError:
            raise InvalidInput(f"{path} does not exist") from None
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from None
        found += _inside(path) if stat.S_ISDIR(kind) else [path]
    return found


def _inside(folder: Path) -> list[Path]:
    """With what will be found unreadable; nothing is left out unsaid."""
    listing = list_images(folder)
    unreadable = [folder / name for name in listing.dangling]
    unreadable += [Path(fault.filename) for fault in listing.faults]
    told = {
        "other files": [f"{count} {kind}" for kind, count in listing.others.most_common()],
        "pipes and devices": listing.endless,
    }
    say(f"{folder}: {what}, passed over: {', '.join(each)}" for what, each in told.items() if each)
    if not (listing.files or unreadable):
        raise InvalidInput(f"{folder} holds no {', '.join(sorted(EXTENSIONS))} files")
    return sorted([*listing.files.values(), *unreadable])


def rules(manifest: Mapping[str, Any], fit: Fit) -> tuple[Shape, Fit]:
    """A model's images, and `fit` in the way of its training."""
    return ImageSpec(**manifest["image"]).shape, replace(fit, how=manifest.get("fit", fit.how))


def read_all(backend: Backend, paths: Sequence[Path], fit: Fit) -> NDArray[np.uint8]:
    """All images as uint8 [n, C, H, W]; the first that cannot be read is an error."""
    shape, fit = rules(backend.model()["manifest"], fit)
    files = find_images(paths)
    read = [fit_files([read_file(f)], shape, fit, LIMITS, [str(f)]) for f in files]
    say([note for one in read for note in one.notes])
    say(
        f"{file} was resized or converted: what follows is of the altered image"
        for file, one in zip(files, read, strict=True)
        if one.altered.any()
    )
    return np.concatenate([one.images for one in read])


def say(notes: Iterable[str]) -> None:
    """On standard error, a line each."""
    for note in notes:
        typer.echo(printable(f"note: {note}"), err=True)


def request_images(told: Mapping[str, Any], most: int, importance_samples: int = 1) -> int:
    """How many images go into one request: at least 1, at most `most`.

    told: as `Backend.model` gives it, with a server's limits; importance_samples: of each image.
    """
    limits = told.get("limits")
    if limits is None:  # a bundle in this process
        return most
    shape = ImageSpec(**told["manifest"]["image"]).shape
    body = limits["max_body_bytes"] - len(npy_prefix("|u1", (most, *shape)))
    fitting: tuple[int, ...] = (
        limits["max_images"],
        limits["max_rows"] // importance_samples,
        limits["max_total_pixels"] // math.prod(shape[1:]),
        body // math.prod(shape),
    )
    return max(1, min(most, *fitting))


def in_chunks(
    backend: Backend,
    images: NDArray[np.uint8],
    compute: Callable[[NDArray[np.uint8]], NDArray[T]],
) -> NDArray[T]:
    """`compute` over parts of `images` that fit a request, put together again."""
    done = []
    chunk = request_images(backend.model(), CHUNK)
    with shown("computing", len(images)) as advance:
        for start in range(0, len(images), chunk):
            part = images[start : start + chunk]
            done.append(compute(part))
            advance(len(part))
    return np.concatenate(done)


def mapped(
    backend: Backend, images: NDArray[np.uint8], seed: int | None
) -> tuple[NDArray[np.float32], list[list[dict[str, Any]]]]:
    """The anomaly maps of `images` and the largest boxes of each."""
    boxes: list[list[dict[str, Any]]] = []
    say(map_notes(len(backend.model()["manifest"]["latent"]["groups"])))

    def part_of(part: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps, found = backend.anomalies(part, seed=seed)
        boxes.extend(found)
        return maps

    return in_chunks(backend, images, part_of), boxes


def read_latents(path: Path) -> NDArray[np.float32]:
    """The npy file at `path`, float32 [n, D]. Raises InvalidInput."""
    try:
        data = path.read_bytes() if path.is_file() else read_file(path)  # a device has no end
        return decode_npy(data, dtypes=("float32",), max_items=2**34)
    except IafvaeError as error:
        raise InvalidInput(f"{path}: {error}") from None


def score_files(
    backend: Backend,
    paths: Sequence[Path],
    fit: Fit,
    *,
    fdr: float | None = None,
    **options: Any,
) -> list[Row]:
    """One row for each file, in order; a file that cannot be scored has a row with "error".

    options: as `Client.score` has them.
    """
    if fdr is not None:
        checks.alpha(fdr, "fdr")
    files = find_images(paths)
    rows: list[Row] = []
    notes: dict[str, None] = {}
    with shown("scoring", len(files)) as advance:
        for part in scored(backend, files, fit, **options):
            rows += part.rows
            if (table := part.table) is not None:
                # Of estimates alone: a server counts images by their places in a request.
                found = {each.name: getattr(table, each.name) for each in fields(Estimates)}
                notes |= dict.fromkeys(Estimates(**found).notes)
            advance(len(part.rows))
    say(notes)
    say_undecided(rows)
    if fdr is not None:
        discover(rows, fdr)
    return rows


def say_undecided(rows: Iterable[Row]) -> None:
    """On how many images there is no decision, and why."""
    states = Counter(row.get("status") for row in rows)
    say(f"no decision on {states[s]}: {why}" for s, why in REASONS.items() if states[s])


@dataclass(frozen=True, eq=False)
class Scored:
    """Some files: a row for each, in order, and of those without "error" the pixels uint8
    [n, C, H, W] and what was answered, None where there is none."""

    rows: list[Row]
    images: NDArray[np.uint8]
    table: ScoreTable | None


def scored(
    backend: Backend,
    files: Sequence[Path],
    fit: Fit,
    *,
    chunk: int = CHUNK,
    **options: Any,
) -> Iterator[Scored]:
    """Scores of image files, at most `chunk` at a time; options as `Client.score` has them."""
    told = backend.model()
    shape, fit = rules(told["manifest"], fit)
    scoring = told["manifest"]["scoring"]
    k = options.get("importance_samples") or scoring["default_importance_samples"]
    chunk = request_images(told, chunk, k)
    for start in range(0, len(files), chunk):
        part = files[start : start + chunk]
        read = [_read_one(path, shape, fit) for path in part]
        good = [one for one in read if not isinstance(one, str)]
        images = np.array([one.images[0] for one in good], np.uint8)
        table = None
        if good:
            altered = np.array([one.altered[0] for one in good], np.bool_)
            table = backend.score(images, altered=altered, **options)
        found = iter(() if table is None else _rows(table, good))
        rows = [
            {"file": str(path)} | ({"error": one} if isinstance(one, str) else next(found))
            for path, one in zip(part, read, strict=True)
        ]
        yield Scored(rows, images, table)


def discover(rows: Sequence[Row], fdr: float) -> None:
    """Say which of all files are discoveries, whatever requests they were sent in, and what a
    reader must know of them."""
    rows = [row for row in rows if "error" not in row]
    known = [None if row["status"] == "altered" else row["p_value"] for row in rows]
    for row, found in zip(rows, discovered(np.array(known, np.float64), fdr), strict=True):
        row["discovery"] = found
    calibration = rows[0]["calibration"] if rows else None
    say(fdr_notes(len(rows), fdr, calibration and calibration["images"]))


def _read_one(path: Path, shape: Shape, fit: Fit) -> Fitted | str:
    try:
        return fit_files([read_file(path)], shape, fit, LIMITS, [path.name])
    except (IafvaeError, OSError) as error:
        return fault(error)


def fault(error: Exception) -> str:
    """What is wrong with a file that is named beside it: of the system's the reason alone."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _rows(table: ScoreTable, read: Sequence[Fitted]) -> Iterator[Row]:
    for i, one in enumerate(read):
        yield {
            **{name: number(getattr(table, name)[i]) for name in NUMBERS},
            "anomalous": bool(table.anomalous[i]) if table.decided[i] else None,
            "altered": bool(table.altered[i]),
            "status": table.status[i],
            **{name: getattr(table, name) for name in OF_ALL},
            "evidence": {name: number(values[i]) for name, values in table.evidence.items()},
            "note": " ".join(one.notes) or None,
        }


def number(value: Any) -> float | None:
    """A JSON number; None for what is none."""
    return float(value) if math.isfinite(value) else None
