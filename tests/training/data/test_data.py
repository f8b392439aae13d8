"""Images are the published ones, splits never overlap and never move, and faults are named."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from training.data import (
    FolderOptions,
    ImageData,
    drawn_pixels,
    epoch_order,
    idx,
    load_dataset,
    split_indices,
)
from training.errors import DataError


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A data directory in torchvision's layout with small fixtures, and their checksums in the
    table."""
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (5100, 4, 5), np.uint8)}
    images["test"] = rng.integers(0, 256, (30, 4, 5), np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    checksums = {}
    for part, array in images.items():
        content = idx_bytes(array)
        packed = gzip.compress(content)
        (raw / idx.NAMES[part]).write_bytes(packed)
        md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        checksums[part] = md5, hashlib.sha256(content).hexdigest()
    table = {"mnist": replace(idx.ARCHIVES["mnist"], checksums=checksums)}
    monkeypatch.setattr(idx, "ARCHIVES", table)
    monkeypatch.setattr("training.data.download.cache_dir", lambda: tmp_path / "cache")
    return tmp_path, images


def test_the_splits_of_the_sixty_thousand_are_disjoint_whole_and_fixed():
    parts = {
        split: split_indices(60_000, split) for split in ("train", "validation", "calibration")
    }
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 55_000,
        "validation": 2_500,
        "calibration": 2_500,
    }
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(60_000))
    # Written down once: a change here would let a model be tested on what it was trained on.
    assert parts["train"][:3].tolist() == [9495, 57272, 9310]
    assert parts["calibration"][:3].tolist() == [37695, 45039, 55519]


def test_what_is_set_aside_leaves_something_to_learn():
    assert len(split_indices(5_001, "train")) == 1
    with pytest.raises(DataError, match="5000 images are too few"):
        split_indices(5_000, "train")


def test_pixels_are_drawn_with_the_published_uniforms():
    """In integers: white where 255 times the upper 24 bits of Philox's word is below level 2^24."""
    grey = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    words = np.random.Philox(key=5 + ((2**64 - 1) << 64)).random_raw(grey.size)
    white = 255 * (words >> np.uint64(40)) < grey.ravel().astype(np.uint64) << np.uint64(24)
    assert np.array_equal(drawn_pixels(grey, 5).ravel(), 255 * white)


def test_images_are_read_packed_and_unpacked(archive):
    root, images = archive
    data = load_dataset("mnist", "test", root, download=False)
    assert np.array_equal(data.pixels, images["test"][:, None])
    packed = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert np.array_equal(load_dataset("mnist", "test", root, download=False).pixels, data.pixels)


def test_train_is_what_neither_validation_nor_calibration_took(archive):
    root, images = archive
    splits = {s: load_dataset("mnist", s, root) for s in ("train", "validation", "calibration")}
    together = np.concatenate([data.pixels for data in splits.values()])[:, 0]
    assert len(splits["train"]) == 100

    def in_order(array):
        return sorted(row.tobytes() for row in array)

    assert in_order(together) == in_order(images["train"])


def test_static_digits_are_the_drawn_ones_and_stay_as_they_are(archive):
    root, images = archive
    static = load_dataset("mnist-static", "test", root, download=False).pixels
    grey = images["test"][:, None]
    assert np.array_equal(static, drawn_pixels(grey, 0))  # what `evaluate` measures by default
    assert set(np.unique(static)) == {0, 255}
    assert np.array_equal(drawn_pixels(static, 7), static)
    parts = [load_dataset("mnist-static", s, root).pixels for s in ("train", "validation")]
    train = drawn_pixels(images["train"][:, None], 1)
    for part, split in zip(parts, ("train", "validation"), strict=True):
        assert np.array_equal(part, train[split_indices(len(train), split)])


def test_changed_content_is_refused_by_name(archive):
    root, images = archive
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    changed = images["test"].copy()
    changed[0, 0, 0] ^= 1
    path.write_bytes(gzip.compress(idx_bytes(changed)))
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte\.gz has not the published content"
    ):
        load_dataset("mnist", "test", root)


def test_another_data_sets_files_of_the_same_names_are_passed_over(archive, monkeypatch):
    root, images = archive
    for name in idx.NAMES.values():  # laid flat, where either may lie
        (root / "MNIST" / "raw" / name).rename(root / name)
    assert np.array_equal(load_dataset("mnist", "test", root).pixels[:, 0], images["test"])
    fetched = []

    def fetch(file, mirrors, md5, folder):
        fetched.append(folder)
        raise DataError("no network")

    monkeypatch.setattr(idx, "fetch", fetch)
    other = replace(
        idx.ARCHIVES["mnist"], folder="FashionMNIST", checksums=dict.fromkeys(idx.NAMES, ("", ""))
    )
    monkeypatch.setitem(idx.ARCHIVES, "fashion-mnist", other)
    with pytest.raises(DataError, match="no network"):
        load_dataset("fashion-mnist", "test", root)
    assert fetched == [root / "FashionMNIST" / "raw"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: b""]
)
def test_a_damaged_archive_is_refused_by_name(archive, damage):
    root, _ = archive
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_dataset("mnist", "test", root)


def test_a_download_tries_every_mirror_and_checks_the_sum(archive, monkeypatch):
    root, images = archive
    raw = root / "MNIST" / "raw"
    content = (raw / "t10k-images-idx3-ubyte.gz").read_bytes()
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    asked = []

    class Downloader:
        def __init__(self, **_):
            pass

        def __call__(self, url, output_file, pooch):
            asked.append(url)
            if len(asked) == 1:
                raise OSError("no route to host")
            Path(output_file).write_bytes(content)

    monkeypatch.setattr("pooch.HTTPDownloader", Downloader)
    data = load_dataset("mnist", "test", root)
    assert np.array_equal(data.pixels[:, 0], images["test"])
    assert len(asked) == 2
    assert (raw / "t10k-images-idx3-ubyte.gz").is_file()
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    content = b"something else"
    with pytest.raises(DataError, match=r"could not be downloaded .* --data-dir"):
        load_dataset("mnist", "test", root)


def test_who_has_no_home_says_where_the_data_lies(archive, monkeypatch):
    root, _ = archive

    def homeless(_name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.undo()
    monkeypatch.setattr("pooch.os_cache", homeless)
    with pytest.raises(DataError, match=r"no home directory.*--data-dir"):
        load_dataset("mnist", "test")
    with pytest.raises(DataError, match="has not the published content"):  # it was found
        load_dataset("mnist", "test", root)


def test_nothing_is_downloaded_where_that_is_forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.download.cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(DataError, match=r"put it at MNIST/raw/t10k-images-idx3-ubyte\.gz"):
        load_dataset("mnist", "test", tmp_path, download=False)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("mnist", "test", tmp_path / "absent", download=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnsit", "split": "test"}, "no data set 'mnsit'"),
        ({"name": "mnist", "split": "tests"}, "no split 'tests'"),
        (
            {"name": "mnist", "split": "test", "options": FolderOptions(size=(32, 32))},
            "options of a folder",
        ),
    ],
)
def test_misspelt_names_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        load_dataset(**arguments)


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(1000, 3, 5)
    assert np.array_equal(order, epoch_order(1000, 3, 5))
    assert np.array_equal(np.sort(order), np.arange(1000))
    for other in (epoch_order(1000, 3, 6), epoch_order(1000, 4, 5)):
        assert abs(stats.spearmanr(order, other).statistic) < 0.15
    assert epoch_order(6, 0, 0).tolist() == [5, 3, 2, 4, 1, 0]


def test_image_data_holds_bytes_of_four_axes():
    with pytest.raises(DataError, match="uint8"):
        ImageData(np.zeros((2, 3, 4), np.uint8), "x", "test")
    data = ImageData(np.zeros((5, 1, 2, 2), np.uint8), "x", "test")
    assert len(data.first(3)) == 3
    assert data.first(None) is data


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_published_files_are_read(name):
    root = os.environ.get("IAFVAE_DATA_DIR")
    if root is None:
        pytest.skip("IAFVAE_DATA_DIR is not set")
    assert load_dataset(name, "test", Path(root), download=False).pixels.shape == (
        10_000,
        1,
        28,
        28,
    )
    assert len(load_dataset(name, "train", Path(root), download=False)) == 55_000
