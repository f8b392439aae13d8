"""Sheets show every image where it belongs, and are written whole or not at all."""

import errno
import io

import numpy as np
import pytest
import torch
from PIL import Image

from model import build_model
from model.config import ConvVaeConfig
from training.plots import (
    mean_pixels,
    pair_sheet,
    png_bytes,
    reconstruction_sheet,
    sample_sheet,
    save_sheet,
)

BORDER, BACKGROUND = 2, 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ConvVaeConfig(image_shape=(1, 8, 8), channels=(4,), hidden=8, latent_dim=4)
    return build_model(config).eval()


def cell(sheet, row, column, height, width):
    y, x = BORDER + row * (height + BORDER), BORDER + column * (width + BORDER)
    return sheet[y : y + height, x : x + width]


def test_originals_stand_above_their_partners():
    above = np.arange(100, 105, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    below = above + 100
    sheet = pair_sheet(above, below, columns=3)
    for i in range(5):
        assert (cell(sheet, 2 * (i // 3), i % 3, 4, 4) == 100 + i).all()
        assert (cell(sheet, 2 * (i // 3) + 1, i % 3, 4, 4) == 200 + i).all()
    assert (cell(sheet, 3, 2, 4, 4) == BACKGROUND).all()


def test_magnified_pixels_are_squares():
    image = np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2)
    sheet = pair_sheet(image, image + 9, columns=1, scale=3)[:, :, 0]
    assert sheet.shape == (2 * 8 + 2, 8 + 2)
    assert np.array_equal(sheet[2:8, 2:8], np.kron(image[0, 0], np.ones((3, 3), np.uint8)))
    assert np.array_equal(sheet[10:16, 2:8], np.kron(image[0, 0] + 9, np.ones((3, 3), np.uint8)))


def test_means_become_the_nearest_level():
    mean = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])
    assert mean_pixels(mean).tolist() == [0, 0, 1, 255]


def test_a_models_sheets_are_the_same_every_time(model):
    assert np.array_equal(sample_sheet(model, count=6), sample_sheet(model, count=6))
    assert not np.array_equal(sample_sheet(model, count=6), sample_sheet(model, count=6, seed=1))


def test_reconstructions_are_the_models_at_eps_zero(model):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8)
    sheet = reconstruction_sheet(model, pixels, columns=4)
    x = torch.from_numpy(pixels >= 128).float()
    with torch.no_grad():
        params = model.infer(model.bottom_up(x), torch.zeros(4, 4)).params
    expected = (torch.sigmoid(params) * 255).round().numpy()
    assert np.array_equal(cell(sheet, 0, 2, 8, 8)[..., 0], pixels[2, 0])
    assert np.array_equal(cell(sheet, 1, 2, 8, 8)[..., 0], expected[2, 0])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_sheet_exactly(tmp_path, channels, mode):
    sheet = np.random.default_rng(0).integers(0, 256, (7, 9, channels), np.uint8)
    image = Image.open(io.BytesIO(png_bytes(sheet)))
    assert image.mode == mode
    assert np.array_equal(np.asarray(image).reshape(sheet.shape), sheet)
    save_sheet(tmp_path / "sheets" / "a.png", sheet)
    assert (tmp_path / "sheets" / "a.png").read_bytes() == png_bytes(sheet)


def test_a_failed_write_leaves_the_old_sheet(tmp_path, monkeypatch):
    sheet = np.zeros((4, 4, 1), np.uint8)
    save_sheet(tmp_path / "a.png", sheet)
    before = (tmp_path / "a.png").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_sheet(tmp_path / "a.png", sheet + 1)
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
