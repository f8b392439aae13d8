"""Many drawn images as one npy array that is computed while it is sent: memory stays flat.

The array's header, and so the length of the whole answer, is known before the first image is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from service.api.request.negotiation import NPY
from service.api.response.rendering import Answer
from service.codecs.npy import npy_prefix
from service.errors import DeadlineExceeded, EngineFailure, Overloaded
from service.operations.model import Images
from service.operations.results import Call

__all__ = ["PIECE_BYTES", "Draw", "piece_rows", "streamed"]

PIECE_BYTES = 2**18  # of a piece: two or three exist at a time, whatever the request asks for
MAX_PIECE_ROWS = 1024

Draw = Callable[[int, int, Call], Awaitable[Images]]  # images first to first + rows - 1


def piece_rows(image_bytes: int) -> int:
    """How many images of so many bytes are computed at a time."""
    return max(1, min(MAX_PIECE_ROWS, PIECE_BYTES // image_bytes))


async def streamed(
    draw: Draw, *, n: int, shape: tuple[int, int, int], seed: int | None, call: Call, seconds: float
) -> Answer:
    """`n` images of `draw` as npy uint8 ``[n, *shape]``, of which the first piece is computed.

    call: of the first piece; later ones have `seconds` each.

    Raises:
        What the first piece raises; what a later one raises breaks the answer off.
    """
    image_bytes = shape[0] * shape[1] * shape[2]
    rows = min(n, piece_rows(image_bytes))
    first = await draw(0, rows, call)
    head = npy_prefix("|u1", (n, *shape))
    return Answer(
        body=head + _body(first, 0),
        rest=_rest(draw, n, rows, call.caller, seconds),
        length=len(head) + n * image_bytes,
        media_type=NPY,
        timing=first.timing,
        seed=seed,
    )


async def _rest(
    draw: Draw, n: int, rows: int, caller: str, seconds: float
) -> AsyncGenerator[bytes, None]:
    for first in range(rows, n, rows):
        count = min(rows, n - first)
        images = await _patiently(draw, first, count, Call(caller, time.monotonic() + seconds))
        yield _body(images, first)


async def _patiently(draw: Draw, first: int, rows: int, call: Call) -> Images:
    """A full queue does not end an answer that has begun: it waits for its turn."""
    while True:
        try:
            return await draw(first, rows, call)
        except Overloaded as error:
            pause = min(error.retry_after_seconds, 1.0)
            if call.deadline is None or time.monotonic() + pause > call.deadline:
                raise DeadlineExceeded("the queue stayed full until the deadline") from None
            await asyncio.sleep(pause)


def _body(images: Images, first: int) -> bytes:
    """Pixels in C order. An npy array cannot say that a mean was no number, so there is none."""
    if not images.finite.all():
        bad = first + int((~images.finite).argmax())
        raise EngineFailure(
            f"image {bad} has a mean that is no number: lower the temperature, or ask for at most "
            "max_n images, whose answer counts such ones"
        )
    return images.images.tobytes()
