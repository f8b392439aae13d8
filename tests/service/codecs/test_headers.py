"""Headers against files whose parts were put together here, and against Pillow's own reading."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service.codecs.headers import MAX_PARTS, MAX_SCANS, read_header
from service.codecs.images import SOON_PARTS, Fit, PixelLimits, decoding_work, fit_files
from service.errors import IafvaeError, PayloadTooLarge, UndecodableImage, WrongDtype

RNG = np.random.default_rng(0)
ANY = PixelLimits()
COLOURS = RNG.integers(0, 256, (24, 32, 3), np.uint8)


def encoded(image, form="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(data):
    """A file's own pixels, uint8 [3, H, W]; one pixel of what is too large, which is refused."""
    header = read_header(data, "image 0")
    height, width = header.size if header.pixels <= 10_000 else (1, 1)
    own = (3, height, width)
    limits = PixelLimits(image=10_000, total=10_000)
    return fit_files([data], own, Fit(resize=True), limits).images[0]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PHOTO = encoded(Image.fromarray(COLOURS), "JPEG")
PNG = encoded(Image.fromarray(COLOURS))


def png(width, height, depth, colour, rows, *chunks, interlaced=0):
    """A PNG that is put together here; `rows` with a filter's byte each."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [
        chunk(b"IHDR", head),
        *chunks,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ------------------------------------------------------------------ PNG


@pytest.mark.parametrize("unused", [0, 0x300])  # bits above the depth
@pytest.mark.parametrize("clear", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_value_is_transparent_at_every_depth(depth, clear, unused):
    most, width = 2**depth - 1, 16
    values = np.arange(width) % (most + 1)
    row = int("".join(f"{value:0{depth}b}" for value in values), 2).to_bytes(2 * depth, "big")
    content = (clear % (most + 1) | unused & ~most).to_bytes(2, "big")
    data = png(width, 1, depth, 0, b"\0" + row, chunk(b"tRNS", content))
    fitted = fit_files([data], (1, 1, width), Fit(), PixelLimits())
    expected = np.where(values == clear % (most + 1), 0, values * 255 // most)
    assert np.array_equal(fitted.images[0, 0, 0], expected)
    assert "transparen" in fitted.notes[0]


@pytest.mark.parametrize("depth", [0, 3, 255])
def test_a_depth_that_is_none_is_refused(depth):
    with pytest.raises(UndecodableImage):
        read(png(2, 1, depth, 0, bytes(3), chunk(b"tRNS", bytes(2))))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
def test_a_png_whose_data_end_before_its_last_row_is_refused(colour, interlaced):
    width, height = 5, 9
    passes = [(5, 9)]
    if interlaced:  # W3C PNG, section 8.2, of 5x9 pixels
        passes = [(1, 2), (1, 2), (2, 1), (1, 3), (3, 2), (2, 5), (5, 4)]
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    colours = [chunk(b"PLTE", bytes(6))] if colour == 3 else []
    for value in (0, 1):
        rows = [b"\0" + bytes([value]) * w * samples for w, h in passes for _ in range(h)]

        def of(rows):
            return png(width, height, 8, colour, b"".join(rows), *colours, interlaced=interlaced)

        assert read(of(rows)).shape == (3, height, width)
        for kept in (rows[:-1], rows[:4], []):
            with pytest.raises(UndecodableImage):
                read(of(kept))


def test_no_flipped_bit_in_the_data_of_a_png_gives_other_pixels():
    """Not all are seen by zlib: what it makes of some is as long as the picture."""
    side = 28
    pixels = np.full((side, side), 7, np.uint8) + 40 * np.eye(side, dtype=np.uint8)
    data = encoded(Image.fromarray(pixels))
    first = data.index(b"IDAT") + 4
    assert read(data).max() == 47
    for place in range(first, len(data) - 12):  # up to IEND, the checksum too
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(UndecodableImage, match="checksum"):
            read(flipped)


def test_a_png_that_xcode_altered_is_told_so():
    data = PNG[:8] + chunk(b"CgBI", b"\x50\0\x20\x02") + PNG[8:]
    with pytest.raises(UndecodableImage, match="Xcode"):
        read(data)


def test_a_jpeg_that_says_its_height_late_is_told_so():
    at = PHOTO.index(b"\xff\xc0") + 5
    height, end = PHOTO[at : at + 2], PHOTO.rindex(b"\xff\xd9")
    late = PHOTO[:at] + b"\0\0" + PHOTO[at + 2 : end] + b"\xff\xdc\0\x04" + height + PHOTO[end:]
    with pytest.raises(UndecodableImage, match="DNL"):
        read(late)


def test_a_palette_png_without_its_palette_is_refused():
    rows = b"\0\0\1\0\1\0" * 2
    colours = chunk(b"PLTE", bytes(range(6)))
    assert read(png(5, 2, 8, 3, rows, colours)).shape == (3, 2, 5)
    with pytest.raises(UndecodableImage, match="no palette"):
        read(png(5, 2, 8, 3, rows))


# ------------------------------------------------------------------ JPEG


@pytest.mark.parametrize("code", [0xC5, 0xC7, 0xCB, 0xCD, 0xCF, 0xDE, 0xF7])
def test_a_jpeg_of_a_kind_that_no_decoder_here_reads_is_not_called_broken(code):
    at = PHOTO.index(b"\xff\xc0")
    with pytest.raises(UndecodableImage, match="of a kind that is not read"):
        read(PHOTO[:at] + b"\xff%c" % code + PHOTO[at + 2 :])


# ------------------------------------------------------------------ EXIF


def tag(number, kind, count, value):
    return struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")[:4]


def directory(*tags, count=None):
    return b"II*\0" + struct.pack("<IH", 8, count or len(tags)) + b"".join(tags) + bytes(4)


SIX = tag(0x112, 3, 1, b"\6\0")
EXIF = {
    "clean": (directory(SIX), 6),
    "big endian": (b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0) + bytes(4), 6),
    "empty": (b"", 1),
    "doubled header": (b"Exif\0\0" + directory(SIX), 6),
    "garbage": (b"\xff" * 40, 1),
    "cut in its header": (b"II*\0", 1),
    "cut before its directory": (b"II*\0\x08\0\0\0", 1),
    "count too large": (directory(SIX, count=255), 6),
    "a thumbnail's": (directory(tag(0x10F, 2, 2, b"a\0")) + directory(SIX)[8:], 1),
    "its own before a thumbnail's": (
        directory(tag(0x112, 3, 1, b"\1\0")) + directory(SIX)[8:],
        1,
    ),
    "directory far away": (b"II*\0\xf0\xff\xff\xff", 1),
    "orientation as text": (directory(tag(0x112, 2, 2, b"6\0")), 1),
    "two orientations": (directory(tag(0x112, 3, 2, b"\6\0\6\0")), 1),
    "orientation 0": (directory(tag(0x112, 3, 1, b"\0\0")), 1),
    "orientation 99": (directory(tag(0x112, 3, 1, b"\x63\0")), 1),
    "another tag is far": (directory(SIX, tag(0x10F, 2, 100, b"\xff\xff\xff\0")), 6),
    "resolution by 0": (directory(SIX, tag(0x11A, 5, 1, b"\x26\0")) + bytes(8), 6),
    "resolution as text": (directory(SIX, tag(0x11A, 2, 3, b"72\0")), 6),
    "a directory in itself": (directory(SIX, tag(0x8769, 4, 1, b"\x08\0\0\0")), 6),
    "unknown type": (directory(SIX, tag(0x9999, 0, 1, b"")), 6),
}


def with_exif(form, exif):
    if form == "JPEG":
        segment = b"Exif\0\0" + exif
        return PHOTO[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + PHOTO[2:]
    if form == "PNG":
        return PNG[:33] + chunk(b"eXIf", exif) + PNG[33:]
    return encoded(Image.fromarray(COLOURS), "WEBP", lossless=True, exif=exif or b"\0")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("case", EXIF)
def test_of_exif_the_orientation_is_read_alone_and_none_is_refused(form, case):
    exif, orientation = EXIF[case]
    data = with_exif(form, exif)
    header = read_header(data, "")
    assert header.orientation == orientation
    assert header.size == ((32, 24) if orientation == 6 else (24, 32))
    upright = read(PHOTO) if form == "JPEG" else COLOURS.transpose(2, 0, 1)
    expected = np.rot90(upright, -1, (1, 2)) if orientation == 6 else upright
    assert np.array_equal(read(data), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read(data), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("second", [b"Exif\0\0" + bytes(9), b"Exif\0\0II*\0\x08\0\0\0\1\0"])
def test_exif_in_several_segments_has_the_orientation_of_the_first(second):
    """What is longer than 64 KiB is cut, and every piece begins with the same word."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(COLOURS), "JPEG", exif=exif)
    end = 20 + 2 + int.from_bytes(data[22:24], "big")  # of JFIF's segment, and of EXIF's
    assert data[20:22] == b"\xff\xe1"
    cut = data[:end] + b"\xff\xe1" + struct.pack(">H", 2 + len(second)) + second + data[end:]
    assert np.array_equal(read(cut), read(data))
    assert read(cut).shape == (3, 32, 24)


# ------------------------------------------------------------------ frames


def animated_png(frames):
    control = struct.pack(">IIIIIHHBB", 0, 32, 24, 0, 0, 1, 10, 0, 0)
    extra = b"".join(chunk(b"fcTL", control) + chunk(b"fdAT", bytes(8)) for _ in range(frames - 1))
    head = PNG[:33] + chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control)
    return head + PNG[33:-12] + extra + PNG[-12:]


def test_a_png_animation_of_one_frame_is_a_picture():
    assert np.array_equal(read(animated_png(1)), COLOURS.transpose(2, 0, 1))


def test_animations_are_refused_before_they_are_decoded():
    other = Image.fromarray(255 - COLOURS)
    webp = encoded(Image.fromarray(COLOURS), "WEBP", save_all=True, append_images=[other])
    for data, count in ((animated_png(3), 3), (webp, 2)):
        with pytest.raises(UndecodableImage, match=f"{count} frames: save each as an image of its"):
            read_header(data, "image 0")


@pytest.mark.parametrize("data", [b"", b"<html>", b"II*\0", b"\x93NUMPY\x01\0"])
def test_advice_is_right_for_files_too(data):
    """Who reads it may have no server: only of an array is said how one goes over HTTP."""
    with pytest.raises(UndecodableImage, match="bytes\\): save it as one of these") as refused:
        read_header(data, "image 0")
    assert "send" not in str(refused.value)
    assert ("x-npy" in str(refused.value)) == (b"NUMPY" in data)


# ------------------------------------------------------------------ scans and parts


def many_scans(scans, side=256):
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_scans_are_counted_and_bounded():
    assert read_header(PHOTO, "").passes == 1
    assert read_header(many_scans(20), "").passes == 20
    with pytest.raises(UndecodableImage, match=f"more than {MAX_SCANS} scans"):
        read_header(many_scans(MAX_SCANS + 1), "")


def test_scans_times_pixels_are_bounded():
    limits = PixelLimits(image=2**24, total=2**24)
    with pytest.raises(PayloadTooLarge, match="90 scans of 4096x4096"):
        fit_files([many_scans(90, 4096)], (1, 8, 8), Fit(), limits)


def test_the_work_of_files_is_that_of_all_their_scans():
    work, headers = decoding_work([many_scans(20), many_scans(30)], (1, 256, 256), Fit(), ANY)
    assert work == (20 + 30) * 256 * 256
    assert len(headers) == 2


def test_the_parts_of_all_files_are_counted_together():
    """Each is soon read through, both are not: then their headers are read beside the loop."""
    file = png(4, 4, 8, 0, bytes(20), *[chunk(b"tEXt", b"")] * (2 * SOON_PARTS // 3))
    one, headers = decoding_work([file], (1, 4, 4), Fit(), ANY)
    assert (one, len(headers)) == (16, 1)
    assert decoding_work([file, file], (1, 4, 4), Fit(), ANY) == (math.inf, [])


def test_an_end_marker_inside_a_segment_hides_no_scans():
    comment = b"\xff\xfe" + struct.pack(">H", 6) + b"\xff\xd9\xff\xd9"
    data = many_scans(20)
    at = data.rindex(b"\xff\xda")
    assert read_header(data[:at] + comment + data[at:], "").passes == 20


def test_what_looks_like_a_scan_in_a_thumbnail_is_none():
    thumbnail = b"Exif\0\0" + directory(SIX) + b"\xff\xda" * 200
    data = PHOTO[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + PHOTO[2:]
    assert read_header(data, "").passes == 1
    assert read(data).shape == (3, 32, 24)


def test_profiles_and_thumbnails_of_photos_are_left_out():
    profile = b"".join(
        b"\xff\xe2" + struct.pack(">H", 65_002) + b"ICC_PROFILE\0" + bytes(64_988)
        for _ in range(200)
    )
    data = PHOTO[:2] + profile + PHOTO[2:]
    assert read_header(data, "").body == PHOTO
    assert np.array_equal(read(data), read(PHOTO))


@pytest.mark.parametrize("kind", [b"abCd", b"IDAT"])
def test_chunks_without_end_are_refused(kind):
    with pytest.raises(UndecodableImage, match="chunks"):
        read_header(PNG[:33] + chunk(kind, b"") * (MAX_PARTS + 1) + PNG[33:], "")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (PNG[:16] + bytes(4) + PNG[20:], "no pixels"),
        (PNG[:20], "its header is cut off"),
        (PNG[:33] + PNG[-12:], "ends before its pixels"),
        (encoded(Image.fromarray(COLOURS), "WEBP")[:20], "its header is cut off"),
    ],
)
def test_what_is_missing_is_said(data, why):
    with pytest.raises(UndecodableImage, match=why):
        read_header(data, "image 0")


def test_a_count_of_frames_that_is_cut_off_is_none():
    data = PNG[:33] + chunk(b"acTL", b"") + PNG[33:]
    assert read_header(data, "image 0").body == PNG


def test_a_second_size_in_a_png_is_not_heard():
    larger = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = PNG[:33] + chunk(b"IHDR", larger) + PNG[33:]
    assert np.array_equal(read(data), COLOURS.transpose(2, 0, 1))


def test_a_second_frame_in_a_photo_is_refused():
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 60_000, 60_000, 1) + b"\1\x11\0"
    with pytest.raises(UndecodableImage, match="two frame headers"):
        read(PHOTO[:2] + frame + PHOTO[2:])


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_every_kind_of_webp(lossless, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(COLOURS[..., 0]))
    header = read_header(encoded(image, "WEBP", lossless=lossless), "")
    assert (header.kind, header.width, header.height) == ("WEBP", 32, 24)


@pytest.mark.parametrize(
    ("image", "form", "channels"),
    [
        (Image.new("L", (4, 4)), "PNG", 1),
        (Image.new("1", (4, 4)), "PNG", 1),
        (Image.new("LA", (4, 4)), "PNG", 1),
        (Image.new("RGB", (4, 4)), "PNG", 3),
        (Image.new("P", (4, 4)), "PNG", 3),
        (Image.new("L", (4, 4)), "JPEG", 1),
        (Image.new("RGB", (4, 4)), "JPEG", 3),
    ],
)
def test_grey_and_colour_are_told_apart(image, form, channels):
    assert read_header(encoded(image, form), "").channels == channels


def test_sixteen_bits_and_cmyk_say_what_to_do():
    with pytest.raises(WrongDtype, match="8 bits: save it with 8"):
        read_header(encoded(Image.fromarray(COLOURS[..., 0].astype(np.uint16))), "")
    with pytest.raises(WrongDtype, match="CMYK: save it as RGB"):
        read_header(encoded(Image.new("CMYK", (4, 4)), "JPEG"), "")


# ------------------------------------------------------------------ any bytes

FILES = [
    PNG,
    PHOTO,
    many_scans(12),
    animated_png(2),
    with_exif("JPEG", directory(SIX)),
    with_exif("WEBP", directory(SIX)),
    encoded(Image.fromarray(COLOURS), "WEBP"),
]


@given(st.data())
def test_damaged_files_raise_nothing_else(data):
    body = bytearray(data.draw(st.sampled_from(FILES)))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=8)):
        body[place] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    for damaged in (bytes(body), cut):
        with contextlib.suppress(IafvaeError):
            read_header(damaged, "")
        with contextlib.suppress(IafvaeError):
            assert read(damaged).size <= 30_000


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]), st.binary())
def test_no_bytes_after_a_beginning_raise_anything_else(beginning, rest):
    with contextlib.suppress(IafvaeError):
        read(beginning + rest)
