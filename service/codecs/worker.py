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

__all__ = ["LENGTH", "Job", "main"]

LENGTH = struct.Struct("<Q")
Function = Callable[..., Fitted | tuple[dict[str, Any], list[bytes]]]
Job = tuple[Function, tuple[Any, ...]]


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
        said, data = _answer(*job)
        for part in (json.dumps(said).encode(), data):
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


def _answer(function: Function, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], bytes]:
    """What is said as JSON, and the bytes of pixels or files."""
    try:
        found = function(*arguments)
    except IafvaeError as error:
        return {"error": type(error).__name__, "detail": str(error)}, b""
    except MemoryError:
        why = "the images take too much memory to decode: make them smaller"
        return {"error": PayloadTooLarge.__name__, "detail": why}, b""
    if isinstance(found, tuple):
        fields, files = found
        return {"fields": fields, "lengths": [*map(len, files)]}, b"".join(files)
    said = {
        "shape": found.images.shape,
        "altered": found.altered.tolist(),
        "notes": found.notes,
        "decoded": found.decoded,
    }
    return said, found.images.tobytes()


def _bound_self(max_bytes: int) -> None:
    """Limit this process's memory, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    memory = Path("/proc/self/statm")  # its sixth number: pages of data
    if memory.exists():
        most = int(memory.read_text().split()[5]) * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
