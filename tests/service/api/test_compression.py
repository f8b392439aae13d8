"""Compressed bodies: what public libraries make and read, and never more than a bound."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from service.api.request.compression import (
    accepted_encoding,
    compress,
    content_encoding,
    decompress,
)
from service.errors import MalformedBody, PayloadTooLarge

TEXT = b"all work and no play " * 100


def bare(data):
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(TEXT, mtime=0), "gzip"),
        (zlib.compress(TEXT), "deflate"),
        (bare(TEXT), "deflate"),
    ],
    ids=["gzip", "zlib", "deflate"],
)
def test_what_libraries_make_is_read(body, encoding):
    assert decompress(body, encoding, len(TEXT)) == TEXT
    with pytest.raises(PayloadTooLarge, match="decompressed"):
        decompress(body, encoding, len(TEXT) - 1)


def test_what_is_made_libraries_read():
    assert gzip.decompress(compress(TEXT, "gzip")) == TEXT
    assert zlib.decompress(compress(TEXT, "deflate")) == TEXT
    assert decompress(compress(b"", "gzip"), "gzip", 0) == b""


def test_a_bomb_is_not_set_off():
    bomb = gzip.compress(bytes(10**8))
    assert len(bomb) < 10**5 * 2
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decompress(bomb, "gzip", 10**6)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * 10**6  # the end of what may be made lies within its first piece


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bare])
@pytest.mark.parametrize("content", ["dense", "light", "mixed"])
def test_megabytes_are_read_in_pieces_and_are_there_once(pack, content):
    dense = np.random.default_rng(0).bytes(2_500_000)
    light = b"\r\n" * 8_000_000
    data = {"dense": dense, "light": light, "mixed": dense + light + dense}[content]
    encoding, body = "gzip" if pack is gzip.compress else "deflate", pack(data)
    tracemalloc.start()
    try:
        made = decompress(body, encoding, len(data))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made == data
    assert most < 1.2 * len(data) + 3 * 2**20  # zlib's join made it twice
    with pytest.raises(PayloadTooLarge):
        decompress(body, encoding, len(data) - 1)
    with pytest.raises(MalformedBody, match="cut off"):
        decompress(body[: len(body) // 2], encoding, len(data))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "noise"])
def test_damage_is_told(encoding, damage):
    body = compress(TEXT, encoding)
    broken = {"empty": b"", "cut": body[:-5], "longer": body + b"x", "noise": b"noise " * 20}
    with pytest.raises(MalformedBody, match=encoding):
        decompress(broken[damage], encoding, 10**6)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("*", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=nonsense", None),
        ("gzip; q=0.1", "gzip"),
    ],
)
def test_only_what_is_named_is_used(accept, encoding):
    assert accepted_encoding(accept) == encoding


def test_members_of_gzip_follow_each_other():
    """As `cat a.gz b.gz` and parallel compressors make them."""
    body = gzip.compress(TEXT) + gzip.compress(b"and more")
    assert decompress(body, "gzip", 10**6) == TEXT + b"and more"
    assert decompress(body, "x-gzip", 10**6) == TEXT + b"and more"
    padded = body + bytes(200_000)  # of blocks, as tar's; more than a piece
    assert decompress(padded, "gzip", 10**6) == TEXT + b"and more"
    assert decompress(padded + body, "gzip", 10**6) == 2 * (TEXT + b"and more")
    with pytest.raises(MalformedBody):
        decompress(padded + b"x", "gzip", 10**6)
    with pytest.raises(PayloadTooLarge):
        decompress(body, "gzip", len(TEXT) + 7)
    with pytest.raises(MalformedBody, match="members"):
        decompress(gzip.compress(b"") * 1000, "gzip", 10**6)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", "identity"),
        ("identity", "identity"),
        (" GZIP ", "gzip"),
        ("gzip, identity", "gzip"),
        ("identity,deflate", "deflate"),
        ("gzip, gzip", "gzip,gzip"),
        ("br", "br"),
    ],
)
def test_what_a_body_is_encoded_with(header, name):
    assert content_encoding(header) == name
