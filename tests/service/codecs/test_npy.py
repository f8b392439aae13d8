"""npy against numpy's own reader and writer, hostile bytes against errors."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.codecs.npy import decode_npy, encode_npy, npy_header, view_npy
from service.errors import IafvaeError, MalformedBody, PayloadTooLarge, WrongDtype


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


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4)), st.sampled_from("<>"), st.booleans())
def test_a_view_copies_nothing(array, order, fortran):
    stored = array.astype(array.dtype.newbyteorder(order))
    body = saved(np.asfortranarray(stored) if fortran else stored)
    got = view_npy(body, dtypes=("float32",), max_items=10_000)
    assert np.shares_memory(got, np.frombuffer(body, np.uint8))
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
        (header(HUGE % f"0, {2**26}, {2**26}, {2**26}"), PayloadTooLarge),
        (header(HUGE % ", ".join(["0", *["101"] * 6])), PayloadTooLarge),
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


@pytest.mark.parametrize(
    "shape", [(0, 2**47, 2**47), (2**47, 0), (0, 10**12), (2**40, 2**40, 2**40)]
)
def test_sizes_that_no_array_has(shape):
    """Beside a size of 0 any other multiplies to no numbers at all, and yet NumPy refuses it."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': %r, }" % (shape,)  # noqa: UP031
    with pytest.raises(PayloadTooLarge):
        read(header(text))


@pytest.mark.parametrize("dtype", ["?", "<f2", "<f4", "<f8", ">f4"])
def test_the_advice_keeps_fractions_and_truth_values(dtype):
    """What the error says to do gives 0, 128 and 255, not black."""
    array = np.array([0, 1] if dtype == "?" else [0, 0.5, 1], dtype)
    with pytest.raises(WrongDtype) as caught:
        read(saved(array))
    advice = str(caught.value).partition("convert it with ")[2].partition(" where")[0]
    fixed = eval(advice, {"array": array})  # noqa: S307
    assert fixed.tolist() == ([0, 255] if dtype == "?" else [0, 128, 255])
    assert np.array_equal(read(saved(fixed)), fixed)


def test_the_advice_for_whole_numbers_and_latents():
    with pytest.raises(WrongDtype, match=r"array\.astype\('uint8'\) where .* in \[0, 255\]$"):
        read(saved(np.zeros(3, np.int64)))
    array = np.array([0, 128 * 257, 65535], np.uint16)
    with pytest.raises(WrongDtype) as caught:
        read(saved(array))
    advice = str(caught.value).partition("convert it with ")[2].partition(" where")[0]
    assert eval(advice, {"array": array}).tolist() == [0, 128, 255]  # noqa: S307
    with pytest.raises(WrongDtype, match=r"array\.astype\('float32'\)$"):
        read(saved(np.zeros(3, np.float64)), ("float32",))


@pytest.mark.parametrize("dtype", ["<U1", "<M8[D]", "<c8", [("a", "u1")]])
def test_what_is_no_number_is_not_converted(dtype):
    with pytest.raises(WrongDtype, match=r"this takes uint8: send numbers$"):
        read(saved(np.zeros(3, dtype)))


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("{'descr': 'u1', 'fortran_order': False, 'shape': (4,)}", "uint8"),
        ("{'descr': 'uint8', 'fortran_order': False, 'shape': (4,)}", "uint8"),
        ("{'descr': '|B', 'fortran_order': False, 'shape': (4,)}", "uint8"),
        ('{"descr": "f4", "fortran_order": False, "shape": [1,]}', None),
        ("{'descr': 'float32', 'fortran_order': False, 'shape': (1,)}", "float32"),
        ("{'descr': '>f', 'fortran_order': False, 'shape': (1,)}", ">f4"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2L, 2L)}", "uint8"),  # Python 2
        ("{'shape':(4,),'fortran_order':False,'descr':'<u1'}\n\n", "uint8"),
    ],
)
def test_what_other_programs_write_is_what_numpy_reads(text, dtype):
    body = header(text, b"\x00\x01\x80\x3f")
    if dtype is None:  # NumPy does not take it either
        with pytest.raises(MalformedBody):
            read(body, ("float32",))
        return
    got = read(body, ("uint8", "float32"))
    assert np.array_equal(got.ravel(), np.frombuffer(b"\x00\x01\x80\x3f", dtype))


def test_an_archive_says_what_it_is():
    file = io.BytesIO()
    np.savez(file, np.zeros(3, np.uint8))
    with pytest.raises(MalformedBody, match="an npz is a zip file of them"):
        read(file.getvalue())


plausible = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(["|u1", "<u1", "u1", "", "<f4", "|O", "|b1", 3, None, ["a"], ()]),
        "fortran_order": st.sampled_from([True, False, 0, None]),
        "shape": st.lists(st.integers(-1, 2**50) | st.sampled_from([0, 1, 2]), max_size=9).map(
            tuple
        ),
    }
)


@given(plausible, st.binary(max_size=64))
def test_no_plausible_header_raises_anything_else(fields, data):
    text = repr(fields)
    for body in (
        header(text, data),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode() + data,
    ):
        with contextlib.suppress(IafvaeError):
            assert read(body).size <= 10_000


@pytest.mark.parametrize(
    "text", ["(" * 1000, "-" * 999 + "1", "[" * 500 + "]" * 500, "{" * 1000, "(" * 4000]
)
def test_no_header_reaches_the_parsers_depth(text):
    with pytest.raises(MalformedBody):
        read(header(text))


def test_the_header_is_told_without_the_data():
    assert npy_header(saved(np.zeros((2, 3), np.uint8)))[0] == ("|u1", False, (2, 3))
