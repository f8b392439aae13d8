"""npy against numpy's own reader and writer, PNG against Pillow, hostile bytes against errors."""

from __future__ import annotations

import base64
import contextlib
import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from service.codecs.npy import (
    contact_sheet,
    decode_base64,
    decode_npy,
    encode_npy,
    encode_png,
    npy_header,
    png_base64,
)
from service.errors import (
    IafvaeError,
    MalformedBody,
    PayloadTooLarge,
    UndecodableImage,
    WrongDtype,
    WrongShape,
)


def saved(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def read(body: bytes, dtypes=("uint8",), max_items=10_000):
    return decode_npy(body, dtypes=dtypes, max_items=max_items)


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(hnp.arrays(np.uint8, shapes))
def test_reads_what_numpy_saves(array):
    assert np.array_equal(read(saved(array)), array)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4)), st.sampled_from("<>"), st.booleans())
def test_reads_any_byte_and_memory_order(array, order, fortran):
    stored = array.astype(array.dtype.newbyteorder(order))
    stored = np.asfortranarray(stored) if fortran else stored
    got = read(saved(stored), ("float32",))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert np.array_equal(got, array, equal_nan=True)


@given(hnp.arrays(st.sampled_from([np.uint8, np.float32, np.float64]), shapes))
def test_numpy_loads_what_is_written(array):
    assert encode_npy(array) == saved(np.ascontiguousarray(array)) or array.ndim == 0
    got = np.load(io.BytesIO(encode_npy(array)), allow_pickle=False)
    assert np.array_equal(got.reshape(array.shape), array, equal_nan=True)


def test_format_versions_two_and_three_are_read():
    array = np.arange(6, dtype=np.uint8)
    for version in ((2, 0), (3, 0)):
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=version)
        assert np.array_equal(read(file.getvalue()), array)


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", MalformedBody),
        (b"hello world, this is text", MalformedBody),
        (b"\x93NUMPY\x01\x00", MalformedBody),
        (b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16, MalformedBody),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", MalformedBody),
        (header("__import__('os').system('true')"), MalformedBody),
        (header("{'descr': '|u1', 'shape': (1,), }", b"a"), MalformedBody),
        (header("{'descr': '|u1', 'fortran_order': 0, 'shape': (1,)}", b"a"), MalformedBody),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"), MalformedBody),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}"), MalformedBody),
        (header("(" * 4000), MalformedBody),
        (header(HUGE % 10**12), PayloadTooLarge),
        (header(HUGE % "9" * 40), MalformedBody),
        (header(HUGE % 10, b"short"), MalformedBody),
        (header(HUGE % 2, b"too long"), MalformedBody),
        (saved(np.zeros(3, np.float64)), WrongDtype),
        (saved(np.zeros(3, np.int8)), WrongDtype),
        (saved(np.zeros(3, [("a", "u1")])), WrongDtype),
        (saved(np.array(["a"])), WrongDtype),
        (saved(np.array([{"a": 1}], dtype=object), allow_pickle=True), WrongDtype),
        (saved(np.zeros(10_001, np.uint8)), PayloadTooLarge),
    ],
)
def test_bad_npy_is_refused(body, error):
    with pytest.raises(error):
        read(body)


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded():
    array = np.empty(1, dtype=object)
    array[0] = Explosive()
    with pytest.raises(WrongDtype, match="never loaded"):
        read(saved(array, allow_pickle=True))
    with pytest.raises(MalformedBody):
        read(pickle.dumps(Explosive()))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    for body in (data, b"\x93NUMPY\x01\x00" + data):
        with contextlib.suppress(IafvaeError):
            read(body)


def test_the_header_is_told_without_the_data():
    assert npy_header(saved(np.zeros((2, 3), np.uint8)))[0] == ("|u1", False, (2, 3))


@given(
    hnp.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)))
)
def test_pillow_reads_the_png(image):
    with Image.open(io.BytesIO(encode_png(image))) as read_back:
        read_back.load()
        array = np.asarray(read_back)
    assert np.array_equal(
        array if array.ndim == 2 else array.transpose(2, 0, 1),
        image.squeeze(0) if len(image) == 1 else image,
    )


def test_a_png_of_other_channels_is_refused():
    with pytest.raises(WrongShape):
        encode_png(np.zeros((2, 4, 4), np.uint8))


def test_base64_of_png():
    image = np.full((1, 1, 2, 2), 7, np.uint8)
    assert base64.b64decode(png_base64(image)[0]) == encode_png(image[0])


@pytest.mark.parametrize("text", ["abc", "a b c d", "täglich=", "data:image/png;base64,?"])
def test_bad_base64(text):
    with pytest.raises(UndecodableImage, match="image 3"):
        decode_base64(text, "image 3")


def test_a_data_url_is_base64_too():
    assert decode_base64("data:image/png;base64,aGk=", "image 0") == b"hi"


def test_sheet_holds_every_image_in_order():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 6), np.uint8)
    sheet = contact_sheet(images)  # 3 columns, 2 rows
    assert sheet.shape == (1, 2 * 6 + 2, 3 * 8 + 2)
    corners = [sheet[0, 2 + 6 * (i // 3), 2 + 8 * (i % 3)] for i in range(5)]
    assert corners == [0, 1, 2, 3, 4]


def test_sheet_of_one_is_itself_and_columns_are_obeyed():
    images = np.zeros((4, 3, 4, 4), np.uint8)
    assert contact_sheet(images[:1]).shape == (3, 4, 4)
    assert contact_sheet(images, columns=4).shape == (3, 8, 26)
