"""Score, encode or map millions of images with Ray: a folder, Parquet or tar shards, to Parquet.

    iafvae-score-dataset s3://bucket/images --bundle models/mnist --out scores

The source is cut into parts, and each part becomes one file that appears when it is complete. What
is there is not computed again, so that an interrupted job goes on, and a part whose node was lost
is computed elsewhere and written once. The numbers are the service's, to the last bit on one kind
of processor: same code, and noise that is a function of each image alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import posixpath
import tarfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import typer
from numpy.typing import NDArray
from pyarrow import fs

from service.bundle import BundleError, load_bundle
from service.cli.help import PLAIN, plain_help
from service.cli.inputs import LIMITS
from service.cli.options import option
from service.client.results import NUMBERS
from service.codecs.folders import EXTENSIONS, is_hidden
from service.codecs.images import Fit, fit_files
from service.errors import IafvaeError, InvalidInput, without_secrets
from service.operations.model import Model

CALL_IMAGES = 256  # of one call of the model: bounds the memory of a worker
JOB = "_job.json"
U8 = NDArray[np.uint8]
Operation = Literal["score", "encode", "map"]
BOX = {"left": pa.int64(), "top": pa.int64(), "side": pa.int64()}
BOX |= {"deviations": pa.float64(), "p_value": pa.float64()}
# Of every part, whatever is in it: readers of many files take the columns of the first.
TYPES: dict[Operation, dict[str, pa.DataType]] = {
    "score": {
        **dict.fromkeys(NUMBERS, pa.float64()),
        "anomalous": pa.bool_(),
        "status": pa.string(),
    },
    "encode": {"latent": pa.list_(pa.float32())},
    "map": {"map": pa.list_(pa.float32()), "largest_box": pa.struct(BOX)},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is computed; `bundle` is a directory that every node has."""

    bundle: str
    operation: Operation = "score"
    importance_samples: int | None = None
    seed: int | None = None
    resize: bool = False
    convert: bool = False
    provider: str = "cpu"


def place(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri` (s3://, gs://, a path) and the path in it."""
    found = fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
    return found[0], found[1]


def is_picture(name: str) -> bool:
    """Whether a path is that of an image."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def is_shown(name: str) -> bool:
    """Whether nothing in a path below a source is hidden."""
    return not any(map(is_hidden, PurePosixPath(name).parts))


def parts_of(source: str, images: int) -> list[dict[str, Any]]:
    """The source in parts: a Parquet row group, a tar shard, or so many `images` of a folder."""
    system, root = place(source)
    info = system.get_file_info(root)
    if info.is_file:
        files = [root]
    else:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
        files = sorted(
            each.path
            for each in found
            if each.is_file and is_shown(posixpath.relpath(each.path, root))
        )
    by_end = {end: [f for f in files if f.lower().endswith(end)] for end in (".parquet", ".tar")}
    if by_end[".parquet"]:
        parts = list[dict[str, Any]]()
        for file in by_end[".parquet"]:
            table = pq.ParquetFile(file, filesystem=system)
            if "image" not in table.schema_arrow.names:
                raise InvalidInput(f"{file} has no column `image`")
            parts += [{"parquet": file, "group": group} for group in range(table.num_row_groups)]
        return parts
    if by_end[".tar"]:
        return [{"tar": file} for file in by_end[".tar"]]
    pictures = list(filter(is_picture, files))
    return [{"files": pictures[at : at + images]} for at in range(0, len(pictures), images)]


def read_part(
    system: fs.FileSystem, part: dict[str, Any]
) -> Iterator[tuple[str, bytes | InvalidInput]]:
    """Names and contents of the images of `part`, or why a file cannot be read; for what a broken
    tar shard does not give, the shard."""
    if "files" in part:
        for file in part["files"]:
            try:
                with system.open_input_stream(file) as stream:
                    content = stream.read()
            except OSError as error:
                yield file, InvalidInput(f"{file} cannot be read: {error}")
            else:
                yield file, content
    elif "tar" in part:
        try:
            with system.open_input_file(part["tar"]) as stream, tarfile.open(fileobj=stream) as tar:
                for member in tar:
                    if member.isfile() and is_picture(member.name) and is_shown(member.name):
                        held = tar.extractfile(member)
                        yield f"{part['tar']}/{member.name}", held.read() if held else b""
        except tarfile.ReadError as error:
            yield part["tar"], InvalidInput(f"{part['tar']} breaks off or is no tar: {error}")
    else:
        table = pq.ParquetFile(part["parquet"], filesystem=system).read_row_group(part["group"])
        rows = table.column("image").to_pylist()  # bytes, or {"bytes", "path"} as hubs have them
        names = table.column("id").to_pylist() if "id" in table.column_names else range(len(rows))
        for name, row in zip(names, rows, strict=True):
            yield f"{name}", (row.get("bytes") if isinstance(row, dict) else row) or b""


class Worker:
    """A model in an actor of Ray, which turns a part into a file."""

    def __init__(self, options: Options, source: str, out: str) -> None:
        self.options = options
        self.source, self.out = place(source)[0], place(out)
        self.model = Model.load(options.bundle, workers=1, provider=options.provider)
        manifest = self.model.manifest
        self.shape = manifest.image.shape
        self.fit = Fit(resize=options.resize, convert=options.convert, how=manifest.fit)
        self.loop = asyncio.Runner()
        self.loop.run(self.model.start())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Compute the part of `row` and write its file."""
        began = time.process_time()
        names, images, altered = list[str](), list[U8](), list[bool]()
        errors = list[str | None]()
        for name, content in read_part(self.source, json.loads(row["part"])):
            names.append(name)
            try:
                if isinstance(content, InvalidInput):
                    raise content
                fitted = fit_files([content], self.shape, self.fit, LIMITS, [name])
                images.append(fitted.images[0])
                altered.append(bool(fitted.altered[0]))
                errors.append(None)
            except IafvaeError as error:
                errors.append(str(error))
        columns = self.computed(np.array(images, np.uint8), np.array(altered)) if images else {}
        good = np.flatnonzero([error is None for error in errors])
        table = {"id": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())}
        for name, kind in TYPES[self.options.operation].items():
            spread: list[Any] = [None] * len(names)
            for at, value in zip(good, columns.get(name, ()), strict=True):
                spread[at] = value
            table[name] = pa.array(spread, kind, from_pandas=True)
        self.write(pa.table(table), row["name"])
        seconds = time.process_time() - began
        return {"images": len(names), "errors": len(names) - len(images), "seconds": seconds}

    def computed(self, images: U8, altered: NDArray[np.bool_]) -> dict[str, list[Any]]:
        """Columns of results for `images` uint8 [n, C, H, W]; altered: which were resized or
        converted."""
        options, columns = self.options, dict[str, list[Any]]()
        for at in range(0, len(images), CALL_IMAGES):
            some = images[at : at + CALL_IMAGES]
            if options.operation == "encode":
                coded = self.loop.run(self.model.encode(some, seed=options.seed))
                found = {"latent": list(coded.latents)}
            elif options.operation == "map":
                maps = self.loop.run(self.model.anomaly_map(some, seed=options.seed, boxes=1))
                found = {
                    "map": list(maps.maps.reshape(len(some), -1)),  # row by row
                    "largest_box": [asdict(boxes[0]) for boxes in maps.boxes],
                }
            else:
                scores = self.loop.run(
                    self.model.score(
                        some,
                        importance_samples=options.importance_samples,
                        seed=options.seed,
                        altered=altered[at : at + CALL_IMAGES],
                    )
                )
                found = {name: list(getattr(scores, name)) for name in TYPES["score"]}
            for name, values in found.items():
                columns.setdefault(name, []).extend(values)
        return columns

    def write(self, table: pa.Table, name: str) -> None:
        """A Parquet file that appears when it is complete; another of its name is replaced."""
        system, root = self.out
        part = f"{root}/.{name}.{uuid.uuid4().hex}"
        pq.write_table(table, part, filesystem=system)
        system.move(part, f"{root}/{name}")


def unfinished(parts: list[dict[str, Any]], options: Options, out: str) -> list[dict[str, str]]:
    """The parts that `out` lacks; it belongs to one job: another one there is an error."""
    job = {**asdict(options), "bundle": load_bundle(options.bundle).hash, "provider": ""}
    system, root = place(out)
    system.create_dir(root, recursive=True)
    told = json.dumps([job, parts], sort_keys=True).encode()
    mark, file = hashlib.sha256(told).hexdigest().encode(), posixpath.join(root, JOB)
    if system.get_file_info(file).is_file:
        with system.open_input_stream(file) as stream:
            if stream.read() != mark:
                raise InvalidInput(f"{out} holds another job: source, bundle or options differ")
    else:
        part = f"{root}/.{JOB}.{uuid.uuid4().hex}"
        with system.open_output_stream(part) as stream:
            stream.write(mark)
        system.move(part, file)
    rows = [{"name": f"part-{i:06d}.parquet", "part": json.dumps(p)} for i, p in enumerate(parts)]
    there = {each.base_name for each in system.get_file_info(fs.FileSelector(root))}
    return [row for row in rows if row["name"] not in there]


app = typer.Typer(add_completion=False, **PLAIN)


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="Folder, Parquet or tar shards: a path or URI.")],
    bundle: str = option(..., "Directory of the bundle, on every node."),
    out: str = option(..., "Directory of the results: a path or URI."),
    operation: Operation = option(
        "score", "score; encode: latents; map: where images are unlike others."
    ),
    importance_samples: int | None = option(None, "K of a score; default: the bundle's.", min=1),
    seed: int | None = option(
        None, "Of the noise; default: the bundle's; of encode: none, the centre.", min=0
    ),
    resize: bool = option(False, "Take images of another size, scaled.", "--resize"),
    convert: bool = option(False, "Take colour for grey and grey for colour.", "--convert"),
    part_images: int = option(1024, "Images of a folder in a part.", min=1),
    workers: str = option("1", "Actors, or MIN:MAX of them."),
    cpus: float = option(1, "Of each worker."),
    gpus: float = option(0, "Of each worker; fractions share one."),
    address: str | None = option(None, "Of the cluster, or auto; default: this machine alone."),
) -> None:
    """Score millions of images with Ray, part by part, to Parquet.

    Called again it goes on where it stopped; an image that cannot be read is a row with an error.

    \b
    Examples:
      iafvae-score-dataset photos --bundle models/mnist --out scores --resize
      iafvae-score-dataset s3://bucket/images --bundle models/mnist \\
        --out s3://bucket/scores --workers 4:64 --address auto
    """
    options = Options(
        bundle=str(Path(bundle).resolve()),
        operation=operation,
        importance_samples=importance_samples,
        seed=seed,
        resize=resize,
        convert=convert,
        provider="cuda" if gpus else "cpu",
    )
    least, _, most = workers.partition(":")
    numbers = [int(each) for each in (least, most or least) if each.isdecimal()]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1]:
        raise InvalidInput(f"--workers is a number or MIN:MAX, not {workers!r}")
    parts = parts_of(source, part_images)
    if not parts:
        ends = ", ".join(sorted(EXTENSIONS))
        raise InvalidInput(f"{source} holds no images ({ends}), Parquet or tar shards")
    rows = unfinished(parts, options, out)
    typer.echo(f"{len(parts)} parts, {len(parts) - len(rows)} of them done before", err=True)
    if not rows:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use unless told not to
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    images, errors, seconds = 0, 0, 0.0
    pool = ray.data.ActorPoolStrategy(min_size=numbers[0], max_size=numbers[1])
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker,
        fn_constructor_args=(options, source, out),
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for done, row in enumerate(data.iter_rows(), 1):
        images, errors = images + row["images"], errors + row["errors"]
        seconds += row["seconds"]
        told = f"{done} of {len(rows)} parts, {images} images ({errors} bad), "
        told += f"{images / seconds:.0f} a second of processor time"
        if done == 1:  # the rate leaves out what Ray and the workers take to start
            began, first = time.monotonic(), images
        else:
            told += f", {(images - first) / (time.monotonic() - began):.0f} a second"
        typer.echo(told, err=True)


def run() -> None:
    """The command; what is wrong is said in one line."""
    plain_help(app)
    try:
        app()
    except (IafvaeError, BundleError, OSError, pa.ArrowException) as error:
        said = without_secrets(str(error))
    except ray.exceptions.RayError as error:  # its text ends with what happened, after a traceback
        said = without_secrets(f"{error}".strip().splitlines()[-1])
        said += "; called again it goes on with the parts that are missing"
    else:
        return
    raise SystemExit(f"iafvae-score-dataset: error: {said}")
