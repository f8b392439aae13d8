"""Compressed bodies: bounded on the way in, only where it is asked for on the way out."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

from service.api.request.negotiation import MAX_ACCEPT_BYTES, weighted
from service.errors import MalformedBody, PayloadTooLarge

__all__ = ["ENCODINGS", "PLAIN", "accepted_encoding", "compress", "content_encoding", "decompress"]

ENCODINGS = ("gzip", "deflate")
# deflate is zlib's format in HTTP (RFC 9110, 8.4.1.2), x-gzip the old name of gzip
PLAIN = "identity"  # the encoding of a body that has none
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
MAX_MEMBERS = 64
PIECE_BYTES, STEP_BYTES = 2**16, 2**20  # that go in, and come out, at once
LEVEL = 1  # higher ones cost several times more, and images and floats hardly get smaller


def content_encoding(header: str) -> str:
    """What a ``Content-Encoding`` header names beside "identity"; that where it names nothing."""
    if len(header) > MAX_ACCEPT_BYTES:
        return header  # nothing that is known
    names = [name.strip().lower() for name in header.split(",")]
    return ",".join(name for name in names if name not in ("", PLAIN)) or PLAIN


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """`body` without its `encoding`; never more than `max_bytes` are made of it.

    A gzip body may have several members, one after the other (RFC 1952, section 2.2).

    Raises:
        PayloadTooLarge: there is more in it.
        MalformedBody: broken, cut off, or followed by something else.
    """
    bits = WINDOW_BITS[encoding]
    if encoding == "deflate" and not _is_zlib(body):
        bits = -15  # bare deflate, as some clients take the name
    made = io.BytesIO()  # grows where it is; what is joined is there twice, and holds all others up
    at = members = 0
    while not members or (bits == 31 and at < len(body)):
        if members == MAX_MEMBERS:
            raise MalformedBody(f"the {encoding} body has more than {MAX_MEMBERS} members")
        stream, members = zlib.decompressobj(bits), members + 1
        while not stream.eof:
            piece = stream.unconsumed_tail or body[at : at + PIECE_BYTES]
            at += 0 if stream.unconsumed_tail else len(piece)
            try:
                some = stream.decompress(piece, min(STEP_BYTES, max_bytes - made.tell() + 1))
            except zlib.error as error:
                raise MalformedBody(f"the body is not {encoding} ({error})") from None
            if not some and not piece:
                raise MalformedBody(f"the {encoding} body is cut off")
            if made.tell() + len(some) > max_bytes:
                raise PayloadTooLarge(
                    f"the body has more than {max_bytes} bytes when decompressed: send less in a "
                    "request"
                )
            made.write(some)
        at -= len(stream.unused_data)
        if bits == 31:
            at = _behind_padding(body, at)
    if at < len(body):
        raise MalformedBody(f"the {encoding} body has bytes after its end")
    return made.getvalue()


def _behind_padding(body: bytes, at: int) -> int:
    """Where the zeros from `at` on end; in pieces, between which others have their turn."""
    while body.startswith(b"\0", at):
        piece = body[at : at + PIECE_BYTES]
        at += len(piece) - len(piece.lstrip(b"\0"))
    return at


def _is_zlib(body: bytes) -> bool:
    """Whether `body` begins as RFC 1950, section 2.2, has it."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def compress(body: bytes, encoding: str) -> bytes:
    """`body` in `encoding`."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()


@lru_cache(maxsize=256)
def accepted_encoding(accept: str) -> str | None:
    """The member of `ENCODINGS` that an ``Accept-Encoding`` header names and likes best.

    accept: of at most `MAX_ACCEPT_BYTES`, as headers are remembered.
    """
    best, best_quality = None, 0.0
    for part in accept.split(","):
        name, quality = weighted(part)
        if name in ENCODINGS and quality > best_quality:
            best, best_quality = name, quality
    return best
