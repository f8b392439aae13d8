"""What training reads of a file is what the service reads of it, and what one refuses both do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.bundle import load_bundle
from service.codecs.npy import decode_npy, encode_npy
from training.data import FolderOptions, load_splits, whole_folder
from training.data.folder import split_of
from training.errors import DataError

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (60, 90, 3), np.uint8))
SMALL = Image.fromarray(RNG.integers(0, 256, (4, 4), np.uint8))
ALPHA = Image.fromarray(RNG.integers(0, 256, (20, 12), np.uint8))


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO, "JPEG", exif=exif)


def clear():
    image = Image.new("RGBA", (12, 20), (250, 120, 60, 255))
    image.putalpha(ALPHA)
    return image


FRAMES = {"save_all": True, "append_images": [SMALL.rotate(90)]}
TAKEN = {
    "exact.png": encoded(SMALL, "PNG"),
    "one-bit.png": encoded(SMALL.convert("1"), "PNG"),
    "wide.png": encoded(PHOTO, "PNG"),
    "palette.png": encoded(PHOTO.quantize(16), "PNG"),
    "clear-colour.png": encoded(PHOTO.quantize(16), "PNG", transparency=3),
    "clear.png": encoded(clear(), "PNG"),
    "clear-grey.png": encoded(clear().convert("LA"), "PNG"),
    "clear.webp": encoded(clear(), "WEBP", lossless=True),
    "photo.webp": encoded(PHOTO, "WEBP"),
    "photo.jpg": encoded(PHOTO, "JPEG"),
    "large.jpg": encoded(PHOTO.resize((900, 600)), "JPEG"),
    "progressive.jpg": encoded(PHOTO, "JPEG", progressive=True),
    "grey.jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "turned.jpg": turned(),
}
REFUSED = {
    "cmyk.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), "CMYK"),
    "deep.png": (encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "16 bits"),
    "moving.png": (encoded(SMALL, "PNG", **FRAMES), "2 frames"),
    "moving.webp": (encoded(SMALL.convert("RGB"), "WEBP", **FRAMES), "2 frames"),
    "cut.png": (encoded(PHOTO, "PNG")[:900], "broken"),
    "thin.png": (encoded(Image.new("L", (500, 3)), "PNG"), "100 times"),
}
OPTIONS = FolderOptions(size=(4, 4), channels=1)


@pytest.fixture(scope="module", params=["crop", "pad"])
def fitting(request, tiny, tmp_path_factory, serve_for_module):
    """A bundle of a model that was trained so, served."""
    path = tmp_path_factory.mktemp("fit") / "tiny"
    tiny.write_tiny_bundle(path, fit=request.param)
    return load_bundle(path).manifest.fit, serve_for_module(models=path)


def latents(client, **request):
    answer = client.post(
        "/v1/encode",
        params={"resize": "true", "convert": "true"},
        headers={"accept": "application/x-npy", **request.pop("headers", {})},
        **request,
    )
    assert answer.status_code == 200, answer.text
    return decode_npy(answer.content, dtypes=("float32",), max_items=100)


@pytest.mark.parametrize("name", TAKEN)
def test_a_files_pixels_are_those_of_training(name, fitting, tmp_path):
    """The tiny model draws its pixels with noise that a single other level would change."""
    how, client = fitting
    (tmp_path / name).write_bytes(TAKEN[name])
    options = FolderOptions(size=(4, 4), channels=1, fit=how)
    trained = whole_folder(f"folder:{tmp_path}", "test", None, options)
    assert trained.fitted == (name not in ("exact.png", "one-bit.png"))
    file = latents(client, files=[("files", (name, TAKEN[name]))])
    npy = {"content": encode_npy(trained.pixels), "headers": {"content-type": "application/x-npy"}}
    assert np.array_equal(file, latents(client, **npy))


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_refuses_both_do(name, server, tmp_path):
    data, words = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        whole_folder(f"folder:{tmp_path}", "test", None, OPTIONS)
    answer = server.post(
        "/v1/encode",
        params={"resize": "true", "convert": "true"},
        files=[("files", (name, data))],
    )
    assert answer.status_code in (415, 422)
    assert words in answer.json()["detail"]


def test_training_says_what_was_transparent(tmp_path):
    name = next(f"{i}.png" for i in range(99) if split_of(f"{i}.png") == "train")
    (tmp_path / name).write_bytes(TAKEN["clear.png"])
    told: list[str] = []
    load_splits(f"folder:{tmp_path}", ("train",), None, OPTIONS, tell=told.append)
    assert told[-1] == f"train: {tmp_path / name} is partly transparent and was put on black"


def test_what_was_transparent_is_a_warning_where_nobody_listens(tmp_path, caplog):
    (tmp_path / "50%.png").write_bytes(TAKEN["clear.png"])
    whole_folder(f"folder:{tmp_path}", "calibration", None, OPTIONS)
    told = f"calibration: {tmp_path / '50%.png'} is partly transparent and was put on black"
    assert caplog.messages == [told]
