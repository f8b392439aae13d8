"""What a PNG, JPEG or WebP file says of itself, and its bytes without all that is no pixels.

Decoders read text, profiles, EXIF and every scan of a progressive JPEG, with bounds and faults of
their own. Here the structure alone is walked: the size and the passes that decoding will take are
known before it begins, and what is not needed for pixels never reaches a decoder.
Sources: W3C PNG (Third Edition), section 5 and 11; ITU-T T.81, annex B; RFC 9649, section 2;
Exif 2.32, section 4.6.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from service.errors import UndecodableImage, WrongDtype

__all__ = ["Header", "TooManyParts", "check_kind", "read_header"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
NPY_MAGIC = b"\x93NUMPY"
PNG_PIXELS = (b"PLTE", b"tRNS", b"IDAT", b"IEND")  # and the first IHDR
PNG_GREY, PNG_PALETTE = (0, 4), 3
PNG_DEPTHS = (1, 2, 4, 8)  # and 16, which is refused
MAX_PARTS = 2**12  # chunks or segments of a file: of 30 MB in libpng's pieces of 8 kB
MAX_SCANS = 100  # of a JPEG: encoders write about ten
MAX_TAGS = 1000  # of EXIF's first directory
ORIENTATION, SHORT = 0x0112, 3
# In a scan 0xFF is followed by 0x00, a restart marker or more 0xFF; all else begins a segment.
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
EOI, SOS, APP0, APP1, APP14 = 0xD9, 0xDA, 0xE0, 0xE1, 0xEE  # APP14: Adobe's colour transform
# Hierarchical frames and lossless arithmetic ones, and JPEG-LS (T.87): no decoder here reads them.
JPEG_UNREAD = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE, 0xF7})
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | JPEG_UNREAD


class TooManyParts(UndecodableImage):
    """A file has more chunks or segments than its reader was to look at."""


@dataclass(frozen=True)
class Header:
    """The file's own size is `width` x `height`; `orientation` (EXIF, 1 to 8) turns it.

    channels: 1 or 3. passes: how many times a decoder goes over all pixels. parts: chunks or
    segments of the file. body: the file with what its pixels need, all else left out.
    """

    kind: str
    width: int
    height: int
    channels: int
    body: bytes
    parts: int
    passes: int = 1
    orientation: int = 1

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width as the picture is looked at."""
        turned = self.orientation >= 5  # by 90 degrees
        return (self.width, self.height) if turned else (self.height, self.width)

    @cached_property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height


def read_header(data: bytes | memoryview, what: str, max_parts: int = MAX_PARTS) -> Header:
    """The header of image file `data`; `what` names it in errors. Nothing is decoded.

    Raises:
        UndecodableImage: no PNG, JPEG or WebP, cut off before its size or its pixels, or of several
            frames.
        TooManyParts: of more than `max_parts` chunks or segments.
        WrongDtype: more than 8 bits a channel, or CMYK.
    """
    data = bytes(data)  # of a view; bytes stay what they are
    read = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[check_kind(data, what)]
    try:
        header = read(data, what, max_parts)
    except (struct.error, IndexError):
        raise broken(what, "its header is cut off") from None
    if not header.pixels:
        raise broken(what, "it has no pixels")
    return header


def check_kind(data: bytes | memoryview, what: str) -> str:
    """PNG, JPEG or WEBP, by the first bytes of `data`. Raises UndecodableImage."""
    first = bytes(data[:12])
    if first.startswith(PNG_MAGIC):
        return "PNG"
    if first.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if first[:4] == b"RIFF" and first[8:] == b"WEBP":
        return "WEBP"
    arrays = " (over HTTP an array is a body of application/x-npy)" * first.startswith(NPY_MAGIC)
    raise UndecodableImage(
        f"{what} is not a PNG, JPEG or WebP file ({len(data)} bytes): save it as one of these"
        f"{arrays}"
    )


def broken(what: str, why: str) -> UndecodableImage:
    """The error of a file that has the right beginning, and ends or goes on wrongly."""
    return UndecodableImage(f"{what} is broken and cannot be decoded ({why}): is it complete?")


def _count(count: int, most: int, what: str, of: str) -> None:
    if count > most:
        kind = UndecodableImage if of == "scans" else TooManyParts
        raise kind(f"{what} has more than {most} {of}: save it again, without them")


def _frames(count: int, what: str) -> None:
    if count > 1:
        raise UndecodableImage(f"{what} has {count} frames: save each as an image of its own")


def _too_deep(depth: int, what: str) -> WrongDtype:
    return WrongDtype(
        f"{what} has {depth} bits a channel, above 8 bits: save it with 8, scaled as you want it"
    )


def _check_process(code: int, what: str) -> None:
    if code in JPEG_UNREAD:
        raise UndecodableImage(
            f"{what} is a JPEG of a kind that is not read (JPEG-LS, hierarchical or lossless "
            "arithmetic): save it as a PNG"
        )


def _check_frame(depth: int, height: int, channels: int, what: str) -> None:
    if depth != 8:
        raise _too_deep(depth, what)
    if channels == 4:
        raise WrongDtype(f"{what} has colour space CMYK: save it as RGB or grey")
    if not height:  # B.2.2
        raise UndecodableImage(
            f"{what} is a JPEG that says its height behind its pixels (DNL), if at all, which is "
            "not read: save it again"
        )


def _check_first_chunk(data: bytes, what: str) -> None:
    if data[12:16] == b"CgBI":
        raise UndecodableImage(
            f"{what} is a PNG as Xcode alters it for iOS (CgBI), which is not read: send the PNG "
            "that it was made of, or save it again"
        )
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d":
        raise broken(what, "its first chunk is not IHDR")


def _png(data: bytes, what: str, max_parts: int) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    _check_first_chunk(data, what)
    if depth == 16:
        raise _too_deep(depth, what)
    at, orientation, parts, kind = 33, 1, 0, b""
    body, kinds = [data[:at]], set[bytes]()
    while at < len(data) and kind != b"IEND" and parts <= max_parts:  # the last may be cut off
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in PNG_PIXELS:
            part = data[at:end]
            if kind == b"IDAT":
                _check_sum(part, what)
            body.append(_scaled(part, depth) if kind == b"tRNS" and colour == 0 else part)
            kinds.add(kind)
        elif kind == b"acTL":
            _frames(int.from_bytes(data[at + 8 : min(at + 12, end - 4)], "big"), what)
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        at, parts = end, parts + 1
    _count(parts, max_parts, what, "chunks")
    if colour == PNG_PALETTE and b"PLTE" not in kinds:
        raise broken(what, "it has no palette")
    if b"IDAT" not in kinds:
        raise broken(what, "it ends before its pixels")
    channels = 1 if colour in PNG_GREY else 3
    whole = b"".join(body)
    return Header("PNG", width, height, channels, whole, parts, orientation=orientation)


def _check_sum(chunk: bytes, what: str) -> None:
    """Of pixels, at whose checksum Pillow does not look; a chunk that is cut off has none."""
    whole = len(chunk) == 12 + int.from_bytes(chunk[:4], "big")
    if whole and zlib.crc32(memoryview(chunk)[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise broken(what, "its pixels do not match their checksum")


def _scaled(chunk: bytes, depth: int) -> bytes:
    """tRNS of a grey PNG with the grey value as eight bits, which Pillow compares it with."""
    if (
        depth not in PNG_DEPTHS
        or len(chunk) != 14
        or zlib.crc32(chunk[4:10]) != int.from_bytes(chunk[10:], "big")
    ):
        return chunk  # it is refused
    most = (1 << depth) - 1
    grey = (int.from_bytes(chunk[8:10], "big") & most) * 255 // most
    content = b"tRNS" + grey.to_bytes(2, "big")
    return chunk[:4] + content + zlib.crc32(content).to_bytes(4, "big")


def _jpeg(data: bytes, what: str, max_parts: int) -> Header:
    body, frame, exif, scans, first_scan = [b"\xff\xd8"], None, b"", 0, 0
    parts = 0
    for parts, (code, start, end) in enumerate(_jpeg_segments(data), 1):
        _count(parts, max_parts, what, "segments")
        if code in JPEG_FRAMES:
            _check_process(code, what)
            if frame is not None:
                raise broken(what, "it has two frame headers")
            frame = struct.unpack_from(">BHHB", data, start + 4)
        elif code == SOS:
            scans, first_scan = scans + 1, first_scan or start
            _count(scans, MAX_SCANS, what, "scans")
        elif code == APP1 and not exif and data[start + 4 : start + 8] == b"Exif":
            exif = data[start + 4 : end]  # what is longer than a segment goes on in the next ones
        if not first_scan and (code < APP0 or code in (APP0, APP14)):
            body.append(data[start:end])
    if frame is None or not first_scan:
        raise broken(what, "it ends before its pixels")
    depth, height, width, channels = frame
    _check_frame(depth, height, channels, what)
    body.append(data[first_scan : end if code == EOI else None])
    channels = 1 if channels == 1 else 3
    whole, orientation = b"".join(body), _orientation(exif)
    return Header("JPEG", width, height, channels, whole, parts, scans, orientation)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, start and end (of its own bytes, without a scan's) of each segment up to the end."""
    at = 2
    while (found := JPEG_MARKER.search(data, at)) is not None:
        start, code = found.start(), data[found.end() - 1]
        if code == EOI:
            yield code, start, found.end()
            return
        if start + 4 > len(data):
            return
        at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        yield code, start, at


def _webp(data: bytes, what: str, max_parts: int) -> Header:
    width = height = frames = 0
    orientation = 1
    parts = 0
    for parts, (kind, start, end) in enumerate(_riff_chunks(data), 1):
        _count(parts, max_parts, what, "chunks")
        w = h = 0
        if kind == b"VP8X":
            w = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            h = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"VP8 ":
            w, h = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L":
            bits = int.from_bytes(data[start + 1 : start + 5], "little")
            w, h = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            orientation = _orientation(data[start:end])
        frames += kind == b"ANMF"
        width, height = max(width, w), max(height, h)
    _frames(frames, what)
    if not width:
        raise broken(what, "it has no picture")
    return Header("WEBP", width, height, 3, data, parts, orientation=orientation)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and start and end of the content, of each chunk."""
    at = 12
    while at + 8 <= len(data):
        start, size = at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], start, start + size
        at = start + size + size % 2


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where it says none, or is damaged before or in it."""
    exif = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some writers double it
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    entries = int.from_bytes(exif[at : at + 2], "little" if order == "<" else "big")
    tags = exif[at + 2 : at + 2 + 12 * min(entries, MAX_TAGS)]  # a thumbnail's follow
    for place in range(0, len(tags) - 11, 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tags, place)
        if tag == ORIENTATION:
            return value if kind == SHORT and count == 1 and 1 <= value <= 8 else 1
    return 1
