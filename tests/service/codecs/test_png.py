"""PNG against Pillow's reader, contact sheets against known places."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from service.codecs.png import contact_sheet, encode_png, png_base64
from service.errors import WrongShape


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
