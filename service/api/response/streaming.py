"""Many drawn images as one npy array that is computed while it is sent: memory stays flat.

The array's header, and so the length of the whole answer, is known before the first image is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Unpack

from starlette.types import Receive, Scope, Send

from service.api.response.rendering import Answer
from service.codecs import NPY
from service.codecs.npy import npy_prefix
from service.errors import DeadlineExceeded, NonFiniteInput, Overloaded
from service.operations.model import Model, pieces
from service.operations.results import Images
from service.scheduler.work import Asked, SampleWork

__all__ = ["StreamedAnswer", "stream_images"]


class StreamedAnswer(Answer):
    """An answer of which `body` is the first piece and `rest` gives the others."""

    def __init__(
        self, body: bytes, rest: AsyncGenerator[bytes, None], first: Images, length: int
    ) -> None:
        super().__init__(body, NPY, first, length=length)
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all of it.

        While one piece is sent the next is computed, and no further one: `send` returns when the
        client has taken enough of what came before, so a slow client holds the computation up.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        piece: bytes | None = bytes(self.body)
        async with aclosing(self.rest):
            while piece is not None:
                ahead = asyncio.ensure_future(anext(self.rest, None))
                try:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    piece = await ahead
                finally:
                    ahead.cancel()
                    await asyncio.wait([ahead])
                    if not ahead.cancelled():
                        ahead.exception()  # known already, or of no interest any more
        await send({"type": "http.response.body", "body": b""})


async def stream_images(
    model: Model, work: SampleWork, seconds: float, **asked: Unpack[Asked]
) -> StreamedAnswer:
    """The images of `work` as npy uint8 ``[n, C, H, W]``, of which the first piece is computed.

    seconds: for each later piece; the deadline is of the first.

    Raises:
        What the first piece raises; what a later one raises breaks the answer off.
    """
    spec = model.manifest.image
    parts = pieces(work, spec.dims)
    first = await model.draw(next(parts), **asked)
    head = npy_prefix("|u1", (work.rows, *spec.shape))
    rest = _rest(model, parts, len(first.images), asked["caller"], seconds)
    return StreamedAnswer(head + _body(first, 0), rest, first, len(head) + work.rows * spec.dims)


async def _rest(
    model: Model, parts: Iterator[SampleWork], done: int, caller: str, seconds: float
) -> AsyncGenerator[bytes, None]:
    for piece in parts:
        yield _body(await _patiently(model, piece, caller, time.monotonic() + seconds), done)
        done += piece.rows


async def _patiently(model: Model, work: SampleWork, caller: str, deadline: float) -> Images:
    """A full queue does not end an answer that has begun: it waits for its turn."""
    while True:
        try:
            return await model.draw(work, caller=caller, deadline=deadline)
        except Overloaded as error:
            pause = min(error.retry_after_seconds, 1.0)
            if time.monotonic() + pause > deadline:
                raise DeadlineExceeded("the queue stayed full until the deadline") from None
            await asyncio.sleep(pause)


def _body(images: Images, first: int) -> bytes:
    """Pixels in C order. An npy array cannot say that a mean was no number, so there is none."""
    if not images.finite.all():
        bad = first + int((~images.finite).argmax())
        raise NonFiniteInput(
            f"image {bad} has a mean that is no number: lower temperature or prior_eps, or ask for "
            "at most max_n images, whose answer counts such ones"
        )
    return images.images.tobytes()
