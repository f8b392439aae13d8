"""A process that decodes images for `pool`, one job after another.

A job comes on the standard input: how many parts it has, how long each is, and the parts, a pickle
of a function (`images.fit_files`, `images.fit_array` or `json_body.json_images`) and its arguments,
then its buffers. Their answer, or error, goes out as JSON and bytes, each after its length: what
has met hostile files is not believed enough to be unpickled. Ends with its input, and takes at most
so many bytes of memory beyond what it begins with as its argument says.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from service.codecs.fitting import Fitted
from service.errors import IafvaeError, PayloadTooLarge

__all__ = ["LENGTH", "main"]

LENGTH = struct.Struct("<Q")
Outcome = Fitted | tuple[dict[str, Any], list[bytes]] | IafvaeError
Job = tuple[Callable[..., Outcome], tuple[Any, ...]]


def main() -> None:
    """Serve jobs until the input ends."""
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    # All that a job needs, before memory is bound.
    from PIL import Image, ImageChops, ImageOps, WebPImagePlugin  # noqa: F401

    from service.codecs import images, json_body  # noqa: F401

    Image.preinit()
    _bound_self(int(sys.argv[1]))
    sys.set_int_max_str_digits(640)  # longer ones take quadratic time
    while (job := _read(jobs)) is not None:
        for part in _parts(_outcome(*job)):
            answers.write(LENGTH.pack(len(part)))
            answers.write(part)
        answers.flush()


def _read(jobs: BinaryIO) -> Job | None:
    head = jobs.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    lengths = [LENGTH.unpack(jobs.read(LENGTH.size))[0] for _ in range(LENGTH.unpack(head)[0])]
    first, *buffers = [jobs.read(length) for length in lengths]
    job: Job = pickle.loads(first, buffers=buffers)  # noqa: S301 - the service's own
    return job


def _parts(outcome: Outcome) -> tuple[bytes, bytes]:
    """An answer as parts: JSON first, then the bytes of pixels or files."""
    said: dict[str, Any]
    data = b""
    if isinstance(outcome, IafvaeError):
        said = {"error": type(outcome).__name__, "detail": str(outcome)}
    elif isinstance(outcome, tuple):
        fields, files = outcome
        said = {"fields": fields, "lengths": [*map(len, files)]}
        data = b"".join(files)
    else:
        said = {
            "shape": outcome.images.shape,
            "altered": outcome.altered.tolist(),
            "notes": outcome.notes,
            "decoded": outcome.decoded,
        }
        data = outcome.images.tobytes()
    return json.dumps(said).encode(), data


def _outcome(function: Callable[..., Outcome], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return function(*arguments)
    except IafvaeError as error:
        return error
    except MemoryError:
        return PayloadTooLarge("the images take too much memory to decode: make them smaller")


def _bound_self(max_bytes: int) -> None:
    """Limit this process's memory, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    memory = Path("/proc/self/statm")  # its sixth number: pages of data
    if memory.exists():
        most = int(memory.read_text().split()[5]) * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
