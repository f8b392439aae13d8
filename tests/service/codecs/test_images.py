"""Image files against pixels that were known before they were encoded."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from service.codecs.headers import read_header
from service.codecs.images import (
    Fit,
    PixelLimits,
    decode_base64,
    fit_array,
    fit_files,
    read_image,
)
from service.errors import (
    IafvaeError,
    PayloadTooLarge,
    UndecodableImage,
    WrongDtype,
    WrongShape,
)

GREY, RGB = (1, 4, 6), (3, 4, 6)
LIMITS = PixelLimits(image=10_000, total=20_000)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6), np.uint8)
COLOURS = RNG.integers(0, 256, (4, 6, 3), np.uint8)


def encoded(image, form="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(data, max_pixels=10_000):
    """A file's own pixels, uint8 [C, H, W]."""
    header = read_header(data, "image 0")
    height, width = header.size if header.pixels <= max_pixels else (1, 1)  # it is refused
    own = (header.channels, height, width)
    limits = PixelLimits(image=max_pixels, total=max_pixels)
    return fit_files([data], own, Fit(resize=True), limits).images[0]


def fitted(data, shape, how="crop"):
    rules = Fit(resize=True, convert=True, how=how)
    return fit_files([data], shape, rules, PixelLimits()).images[0]


def test_grey_and_colour_png():
    assert np.array_equal(read(encoded(Image.fromarray(PIXELS))), PIXELS[None])
    assert np.array_equal(read(encoded(Image.fromarray(COLOURS))), COLOURS.transpose(2, 0, 1))


def test_webp_and_jpeg():
    lossless = encoded(Image.fromarray(COLOURS), "WEBP", lossless=True)
    assert np.array_equal(read(lossless), COLOURS.transpose(2, 0, 1))
    flat = np.full((8, 8), 100, np.uint8)
    assert np.abs(read(encoded(Image.fromarray(flat), "JPEG")).astype(int) - 100).max() <= 2


def test_a_jpeg_whose_colours_are_not_transformed():
    """Only Adobe's marker tells, where components are numbered as those of YCbCr are."""
    red = np.full((16, 16, 3), (200, 30, 0), np.uint8)
    data = encoded(Image.fromarray(red), "JPEG", keep_rgb=True, quality=95)
    for name, number in zip(b"RGB", b"\1\2\3", strict=True):  # in SOF and in SOS
        data = data.replace(bytes([name, 0x11, 0]), bytes([number, 0x11, 0]))
        data = data.replace(bytes([name, 0x00]), bytes([number, 0x00]))
    assert b"Adobe" in data
    assert np.abs(read(data).astype(int) - red.transpose(2, 0, 1)).max() <= 2


def test_one_bit_becomes_black_and_white():
    bits = PIXELS > 127
    assert np.array_equal(read(encoded(Image.fromarray(bits))), bits[None] * np.uint8(255))


def test_palettes_are_expanded():
    image = (
        Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
        if False
        else Image.new("P", (2, 2))
    )
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 1, 0])
    assert read(encoded(image))[:, 0].tolist() == [[10, 200], [20, 100], [30, 50]]


def test_alpha_is_composited_over_black():
    rgba = np.dstack([np.full((2, 2, 3), 200, np.uint8), np.array([[0, 255], [128, 64]], np.uint8)])
    expected = np.round(200.0 * rgba[..., 3] / 255)
    got = read(encoded(Image.fromarray(rgba)))
    assert all(np.array_equal(channel, expected) for channel in got)


def test_transparent_colour_of_a_grey_png_is_black():
    data = encoded(Image.fromarray(np.array([[9, 200]], np.uint8)), transparency=200)
    assert read(data)[:, 0].tolist() == [[9, 0]]


def test_exif_orientation_is_applied():
    image = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = encoded(image, "PNG", exif=exif)
    assert np.array_equal(read(data), np.rot90(COLOURS, -1).transpose(2, 0, 1))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, colour, rows=b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def test_sixteen_bits_are_refused():
    with pytest.raises(WrongDtype, match="8 bits"):
        read(encoded(Image.fromarray(PIXELS.astype(np.uint16) * 257)))
    with pytest.raises(WrongDtype, match="8 bits"):  # Pillow would cut this one to 8 by itself
        read(raw_png(1, 1, 16, 2, b"\0" + b"\1\2" * 3))


def test_foreign_colour_spaces_are_refused():
    with pytest.raises(WrongDtype, match="CMYK"):
        read(encoded(Image.new("CMYK", (4, 4)), "JPEG"))


@pytest.mark.parametrize(
    ("width", "height"), [(101, 100), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_bombs_are_refused_by_their_header(width, height):
    with pytest.raises(PayloadTooLarge, match="pixels"):
        read(raw_png(width, height, 8, 0))


def test_bombs_are_not_decoded():
    bomb = raw_png(5000, 5000, 8, 0, bytes(5001 * 5000))
    assert len(bomb) < 100_000
    with pytest.raises(PayloadTooLarge, match="5000x5000"):
        read(bomb)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"tEXt", b"abCd"])
def test_what_is_no_pixels_never_reaches_the_decoder(kind):
    """Text and profiles of more than a megabyte are common; a bomb among them is not inflated."""
    text = png_chunk(kind, b"Comment\0\0" + zlib.compress(bytes(2**27)))
    data = raw_png(2, 2, 8, 0, b"\0\1\2\0\3\4")
    assert read(data[:33] + text + data[33:]).tolist() == [[[1, 2], [3, 4]]]
    assert read_header(data[:33] + text + data[33:], "").body == data


def test_animations_are_refused():
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(UndecodableImage, match="frames"):
        read(data)


def test_truncated_and_foreign_files():
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (50, 50), np.uint8)))
    with pytest.raises(UndecodableImage, match="complete"):
        read(whole[: len(whole) // 2])
    interlaced = whole[:28] + b"\x09" + whole[29:]  # a method that there is not
    with pytest.raises(UndecodableImage, match=r"cannot be decoded \([^<]*\): is it") as caught:
        read(interlaced)
    assert "0x" not in str(caught.value), "where in memory something is"
    for data in (b"", b"just some text", b"GIF89a" + bytes(30), b"<svg/>"):
        with pytest.raises(UndecodableImage, match="PNG, JPEG or WebP"):
            read(data)


JPEGS = {
    "baseline": {},
    "optimised": {"optimize": True, "quality": 20},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 1},
    "of whole colours": {"subsampling": 0},
}


@pytest.mark.parametrize("how", JPEGS)
@pytest.mark.parametrize("colour", ["RGB", "L"])
def test_a_jpeg_that_was_cut_and_given_an_end_is_not_whole(how, colour):
    """libjpeg paints grey what is missing, and says nothing."""
    image = Image.fromarray(RNG.integers(0, 256, (96, 128, 3), np.uint8)).convert(colour)
    whole, shape = encoded(image, "JPEG", **JPEGS[how]), (len(colour), 96, 128)
    rules, limits = Fit(resize=True), PixelLimits()
    for size in (shape, (shape[0], 8, 8)):  # also where it is decoded smaller
        for data in (whole, whole + b"\xff\xd9 and more"):
            fit_files([data], size, rules, limits)
        for share in (0.3, 0.5, 0.7, 0.9, 0.95):
            cut = whole[: int(share * len(whole))] + b"\xff\xd9"
            with pytest.raises(UndecodableImage, match="complete"):
                fit_files([cut], size, rules, limits)


@pytest.mark.parametrize("how", JPEGS)
def test_a_jpeg_that_is_grey_at_its_end_is_whole(how):
    grey = Image.fromarray(np.full((40, 40, 3), 128, np.uint8))
    assert (read(encoded(grey, "JPEG", **JPEGS[how])) == 128).all()


@given(
    st.tuples(*[st.integers(1, 100)] * 2),  # no longer than is resized
    st.sampled_from(["L", "RGB"]),
    st.sampled_from(sorted(JPEGS)),
    st.integers(5, 95),
    st.sampled_from([0, 128, None]),
    st.sampled_from([None, 4, 28]),
)
def test_whole_jpegs_of_any_size_are_read(size, mode, how, quality, level, wanted):
    """Decoded smaller, too: a second decoding must find the very same picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    if level is not None:
        pixels[:] = level
    options = {"quality": quality, **JPEGS[how]}
    body = encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options)
    width, height = (wanted, wanted) if wanted else size
    pixels = read_image(body, channels=3, height=height, width=width)
    assert pixels.shape == (3, height, width)


@given(st.data())
def test_damaged_files_raise_nothing_else(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    body = bytearray(encoded(Image.fromarray(COLOURS), form))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=8)):
        body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(IafvaeError):
        read(bytes(body))


@pytest.mark.parametrize("text", ["abc", "a b c d", "täglich=", "data:image/png;base64,?"])
def test_bad_base64(text):
    with pytest.raises(UndecodableImage, match="image 3"):
        decode_base64(text, "image 3")


def test_a_data_url_is_base64_too():
    assert decode_base64("data:image/png;base64,aGk=", "image 0") == b"hi"


# ------------------------------------------------------------------ fitting


def test_equal_channels_serve_a_grey_model_unaltered():
    fitted = fit_files([encoded(Image.fromarray(PIXELS).convert("RGB"))], GREY, Fit(), LIMITS)
    assert np.array_equal(fitted.images[0, 0], PIXELS)
    assert not fitted.altered.any()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_in_a_lossy_webp_serves_a_grey_model_unaltered(mode):
    """Its channels differ by rounding: 16 x 16 greys have all values."""
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    data = encoded(grey.convert(mode), "WEBP")
    with Image.open(io.BytesIO(data)) as image:
        red, green, _ = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    assert (red != green).any()
    fitted = fit_files([data], (1, 16, 16), Fit(), LIMITS)
    assert np.array_equal(fitted.images[0, 0], red)
    assert not fitted.altered.any()


def test_colour_in_a_webp_is_colour():
    pixels = np.full((16, 16, 3), 100, np.uint8)
    pixels[8, 8] = 102, 100, 100
    data = encoded(Image.fromarray(pixels), "WEBP", lossless=True)
    with pytest.raises(WrongShape, match="3 different channels"):
        fit_files([data], (1, 16, 16), Fit(), LIMITS)


def test_grey_serves_a_colour_model_unaltered():
    fitted = fit_files([encoded(Image.fromarray(PIXELS))], RGB, Fit(), LIMITS)
    assert np.array_equal(fitted.images[0], np.stack([PIXELS] * 3))
    assert not fitted.altered.any()


def test_colour_is_refused_or_converted():
    data = encoded(Image.fromarray(COLOURS))
    with pytest.raises(WrongShape, match="convert=true"):
        fit_files([data], GREY, Fit(), LIMITS)
    fitted = fit_files([data], GREY, Fit(convert=True), LIMITS)
    independent = np.asarray(Image.fromarray(COLOURS).convert("L"))  # the same standard
    assert np.array_equal(fitted.images[0, 0], independent)
    assert fitted.altered.all()


@pytest.mark.parametrize("channel", range(3))
def test_one_channel_that_differs_is_colour(channel):
    pixels = np.repeat(PIXELS[:, :, None], 3, axis=2)
    pixels[2, 3, channel] ^= 1
    with pytest.raises(WrongShape, match="3 different channels"):
        fit_files([encoded(Image.fromarray(pixels))], GREY, Fit(), LIMITS)
    with pytest.raises(WrongShape, match="3 different channels"):
        fit_array(pixels[None], GREY, Fit())


def test_another_size_is_refused_or_resized():
    data = encoded(Image.fromarray(np.full((9, 11), 77, np.uint8)))
    with pytest.raises(WrongShape, match="resize=true"):
        fit_files([data], GREY, Fit(), LIMITS)
    fitted = fit_files([data], GREY, Fit(resize=True), LIMITS)
    assert fitted.images.shape == (1, 1, 4, 6)
    assert (fitted.images == 77).all()
    assert fitted.altered.all()


def test_only_what_was_altered_is_marked():
    good, other = encoded(Image.fromarray(PIXELS)), encoded(Image.new("L", (3, 3)))
    fitted = fit_files([good, other, good], GREY, Fit(resize=True), LIMITS)
    assert fitted.altered.tolist() == [False, True, False]


def test_errors_name_the_file():
    with pytest.raises(UndecodableImage, match=r"b\.png"):
        fit_files([encoded(Image.fromarray(PIXELS)), b"x"], GREY, Fit(), LIMITS, ["a.png", "b.png"])
    with pytest.raises(UndecodableImage, match="image 1"):
        fit_files([encoded(Image.fromarray(PIXELS)), b"x"], GREY, Fit(), LIMITS)


def test_pixels_of_all_files_together_are_limited():
    big = encoded(Image.new("L", (90, 90)))
    with pytest.raises(PayloadTooLarge, match="image 2"):
        fit_files([big] * 3, GREY, Fit(resize=True), LIMITS)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((2, 4, 6), GREY),
        ((2, 1, 4, 6), GREY),
        ((2, 4, 6, 1), GREY),
        ((2, 3, 4, 6), RGB),
        ((2, 4, 6, 3), RGB),
    ],
)
def test_every_layout_of_an_array(shape, spec):
    array = RNG.integers(0, 256, shape, np.uint8)
    images = fit_array(array, spec, Fit()).images
    assert images.shape == (2, spec[0], 4, 6)
    assert np.array_equal(
        images.transpose(0, 2, 3, 1) if shape[-1] in (1, 3) else images.reshape(shape), array
    )


@pytest.mark.parametrize(
    "shape", [(4,), (4, 6), (2, 2, 4, 6), (2, 1, 1, 4, 6), (2, 5, 6), (2, 4, 6, 4)]
)
def test_other_shapes_are_refused(shape):
    with pytest.raises(WrongShape):
        fit_array(np.zeros(shape, np.uint8), GREY, Fit())


def test_arrays_are_resized_and_converted_on_demand():
    array = RNG.integers(0, 256, (2, 8, 12, 3), np.uint8)
    fitted = fit_array(array, GREY, Fit(resize=True, convert=True))
    assert fitted.images.shape == (2, 1, 4, 6)
    assert fitted.altered.all()
    assert fit_array(array[..., 0], GREY, Fit(resize=True)).altered.all(), "by its size alone"


def test_an_arrays_grey_is_pillows():
    array = RNG.integers(0, 256, (3, 4, 6, 3), np.uint8)
    array[0] = array[0, :, :, :1]  # one is grey as it is
    fitted = fit_array(array, GREY, Fit(convert=True))
    wanted = [np.asarray(Image.fromarray(image).convert("L"))[None] for image in array]
    assert np.array_equal(fitted.images, wanted)
    assert fitted.altered.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("shape", "spec", "transposed"),
    [
        ((3, 4, 6), RGB, False),
        ((4, 6, 3), RGB, True),
        ((1, 4, 6), GREY, False),
        ((4, 6, 1), GREY, True),
    ],
)
def test_one_image_without_a_batch_axis_is_one(shape, spec, transposed):
    array = RNG.integers(0, 256, shape, np.uint8)
    images = fit_array(array, spec, Fit()).images
    assert np.array_equal(images[0], array.transpose(2, 0, 1) if transposed else array)
    assert len(images) == 1


@pytest.mark.parametrize(("shape", "spec"), [((40, 60, 3), GREY), ((40, 60, 1), RGB)])
def test_channels_that_come_last_are_none_of_the_sides(shape, spec):
    """Else one photo were as many strips of three pixels as it is high, each with a result."""
    array = RNG.integers(0, 256, shape, np.uint8)
    fitted = fit_array(array, spec, Fit(resize=True, convert=True))
    batch = fit_array(array[None], spec, Fit(resize=True, convert=True))
    assert len(fitted.images) == 1
    assert np.array_equal(fitted.images, batch.images)


def test_three_grey_images_of_a_grey_model_are_three():
    assert len(fit_array(np.zeros((3, 4, 6), np.uint8), GREY, Fit()).images) == 3


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((1, 3, 1000, 1000), GREY), ((1, 1000, 1000, 3), GREY), ((1, 1000, 1000), RGB)],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_wrong_size_is_refused_before_anything_is_copied(shape, spec, order):
    array = np.zeros(shape, np.uint8, order)
    array[..., 1] = 1  # colours
    tracemalloc.start()
    with pytest.raises(WrongShape, match="1000x1000 pixels"):
        fit_array(array, spec, Fit(convert=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 4, 6, 3), (2, 1, 4, 6), (2, 4, 6), (2, 5, 9)])
@pytest.mark.parametrize("spec", [GREY, RGB])
def test_the_order_in_memory_does_not_matter(shape, spec):
    array = RNG.integers(0, 256, shape, np.uint8)
    fit = Fit(resize=True, convert=True)
    images = fit_array(np.asfortranarray(array), spec, fit).images
    assert images.flags.c_contiguous
    assert np.array_equal(images, fit_array(array, spec, fit).images)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4, 6), (3, 1, 0, 0), (2**20, 0, 6)])
@pytest.mark.parametrize("resize", [False, True])
def test_arrays_without_pixels_are_refused(shape, resize):
    with pytest.raises(WrongShape):
        fit_array(np.zeros(shape, np.uint8), GREY, Fit(resize=resize))


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7)))
def test_no_array_raises_anything_else(array):
    for spec in (GREY, RGB):
        with contextlib.suppress(IafvaeError):
            images = fit_array(array, spec, Fit(resize=True, convert=True)).images
            assert images.shape[1:] == (spec[0], 4, 6)


# ------------------------------------------------------------------ the fit of training

WIDE = np.arange(40, dtype=np.uint8)[None].repeat(20, 0)  # 20 high, 40 wide, a slope to the right


def test_crop_keeps_the_middle_as_pillow_cuts_it():
    photo = Image.fromarray(RNG.integers(0, 256, (48, 90, 3), np.uint8))
    expected = np.asarray(ImageOps.fit(photo, (16, 16), Image.Resampling.LANCZOS))
    got = fitted(encoded(photo), (3, 16, 16))
    assert np.array_equal(got, expected.transpose(2, 0, 1))


def test_crop_pad_and_none():
    def wide(size, how):
        return fit_array(WIDE[None, None], (1, *size), Fit(resize=True, how=how)).images[0]

    assert np.array_equal(wide((20, 20), "crop")[0], WIDE[:, 10:30])
    padded = wide((40, 40), "pad")
    assert np.array_equal(padded[0, 10:30], WIDE)
    assert not padded[0, :10].any()
    assert not padded[0, 30:].any()
    with pytest.raises(WrongShape, match="20x40"):
        wide((20, 20), "none")
    assert np.array_equal(wide((20, 40), "none")[0], WIDE)


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_an_array_is_fitted_as_a_file_is(how):
    photo = encoded(Image.fromarray(RNG.integers(0, 256, (60, 80, 3), np.uint8)))
    array = fit_array(read(photo), RGB, Fit(resize=True, how=how)).images[0]
    assert np.array_equal(array, fitted(photo, RGB, how))


def test_none_refuses_to_resize():
    with pytest.raises(WrongShape, match="9x11") as caught:
        fit_files([encoded(Image.new("L", (11, 9)))], GREY, Fit(resize=True, how="none"), LIMITS)
    assert "resize=true" not in str(caught.value)


def test_a_large_photo_is_what_it_is_when_decoded_in_full():
    """JPEGs are decoded smaller where they will be: within a level or two of the whole."""
    y, x = np.mgrid[0:1200, 0:1600] / 100
    smooth = np.stack([127 + 120 * np.sin(x + k) * np.cos(y) for k in range(3)], -1)
    photo = Image.fromarray(smooth.astype(np.uint8))
    data = encoded(photo, "JPEG", quality=95)
    expected = ImageOps.fit(photo, (32, 32), Image.Resampling.LANCZOS)
    size = (3, 32, 32)
    got = fitted(data, size).transpose(1, 2, 0).astype(int)
    assert np.abs(got - np.asarray(expected)).max() <= 3


def test_phone_photos_are_taken_by_default():
    photo = encoded(Image.new("RGB", (6000, 4000), (200, 100, 50)), "JPEG")
    images = fit_files([photo], RGB, Fit(resize=True), PixelLimits()).images
    assert np.abs(images[0, :, 0, 0].astype(int) - [200, 100, 50]).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(10_001, 100), (1, 101), (16_777_208, 1)])
def test_strips_are_not_resized(width, height):
    limits = PixelLimits(image=2**24, total=2**24)
    with pytest.raises(WrongShape, match="at most 100 times"):
        fit_files([raw_png(width, height, 8, 0)], GREY, Fit(resize=True), limits)
    if width * height < 10_000:
        array = np.zeros((1, 1, height, width), np.uint8)
        with pytest.raises(WrongShape, match="at most 100 times"):
            fit_array(array, GREY, Fit(resize=True))


def test_another_size_is_refused_before_it_is_decoded():
    with pytest.raises(WrongShape, match="resize=true"):
        fit_files([raw_png(100, 90, 8, 0)], GREY, Fit(), LIMITS)  # there are no pixels to decode


# ------------------------------------------------------------------ transparency


def test_every_alpha_of_every_colour_is_over_black():
    alpha, value = np.mgrid[0:256, 0:256]
    rgba = np.dstack([value, value, value, alpha]).astype(np.uint8)
    expected = np.round(value * alpha / 255)
    got = read(encoded(Image.fromarray(rgba)), max_pixels=2**16)
    assert np.array_equal(got, np.stack([expected] * 3))


def notes(rgba):
    data = encoded(Image.fromarray(rgba))
    return fit_files([data], RGB, Fit(), LIMITS, ["file 'a.png'"]).notes


def test_transparency_is_said_and_ink_that_is_lost():
    grey = np.dstack([np.full((4, 6, 3), 90, np.uint8), np.full((4, 6), 255, np.uint8)])
    assert notes(grey) == ()
    grey[0, 0, 3] = 254
    assert notes(grey) == ("file 'a.png' is partly transparent and was put on black",)
    ink = np.zeros((4, 6, 4), np.uint8)
    ink[1:3, :, 3] = 255
    (note,) = notes(ink)
    assert "nothing of it is left: put it on white" in note
