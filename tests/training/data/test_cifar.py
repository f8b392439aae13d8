"""CIFAR-10 is read from every layout it comes in, and nothing in a file can run or mislead."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.data import cifar, load_dataset
from training.data.safe_pickle import load_batch
from training.errors import DataError

COUNT = 12  # images a batch, instead of 10,000
NAMES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


@pytest.fixture
def images(monkeypatch, tmp_path):
    """Small batches: part -> uint8 [N, 3, 32, 32] in order."""
    monkeypatch.setattr(cifar, "BATCH_IMAGES", COUNT)
    monkeypatch.setattr(cifar, "_cache", lambda: tmp_path / "cache")
    rng = np.random.default_rng(0)
    return {
        part: rng.integers(0, 256, (len(names) * COUNT, 3, 32, 32), np.uint8)
        for part, names in NAMES.items()
    }


def batches(images):
    for part, names in NAMES.items():
        for i, name in enumerate(names):
            yield name, images[part][i * COUNT : (i + 1) * COUNT].reshape(COUNT, -1)


def python_2_pickle(data, labels):
    """A batch as Python 2 and NumPy 1 wrote the official ones: strings of bytes, old names."""
    out = bytearray(b"\x80\x02}(")

    def text(value):
        out.extend(b"U" + bytes([len(value)]) + value)

    text(b"data")
    out.extend(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR")
    out.extend(b"(K\x01(M" + len(data).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little"))
    out.extend(b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ")
    out.extend(b"\xff\xff\xff\xffK\x00tb\x89T" + data.nbytes.to_bytes(4, "little"))
    out.extend(data.tobytes() + b"tb")
    text(b"labels")
    out.extend(b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e")
    out.extend(b"u.")
    return bytes(out)


def write_python(folder, images, write):
    folder.mkdir(parents=True)
    for name, data in batches(images):
        (folder / name).write_bytes(write(data))


def write_binary(folder, images):
    folder.mkdir(parents=True)
    for name, data in batches(images):
        labels = np.arange(COUNT, dtype=np.uint8)[:, None] % 10
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, data], axis=1).tobytes())


def pickled(protocol):
    def write(data):
        batch = {b"batch_label": b"one", b"labels": [1] * COUNT, b"data": data}
        return pickle.dumps(batch, protocol=protocol)

    return write


PICKLES = {
    "python 2": lambda data: python_2_pickle(data, [7] * COUNT),
    "protocol 2": pickled(2),
    "protocol 4": pickled(4),
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("bare", [False, True])
def test_unpacked_batches_are_read_in_their_order(images, tmp_path, kind, bare):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    write_python(folder, images, PICKLES[kind])
    data_dir = folder if bare else folder.parent
    for part, expected in images.items():
        assert np.array_equal(cifar.read_cifar10(part, data_dir, download=False), expected)


def test_the_binary_version_is_read_unpacked_and_packed(images, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    write_binary(folder, images)
    read = cifar.read_cifar10("test", folder.parent, download=False)
    assert np.array_equal(read, images["test"])
    packed = tmp_path / "packed" / "cifar-10-binary.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    with pytest.raises(DataError, match=r"published MD5 of cifar-10-binary\.tar\.gz: delete it"):
        cifar.read_cifar10("train", packed.parent)
    md5 = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
    table = {packed.name: (md5, "cifar-10-batches-bin")}
    monkeypatch.setattr(cifar, "TARBALLS", table)
    assert np.array_equal(cifar.read_cifar10("train", packed.parent), images["train"])
    # And as a download: into the data directory, checked by the sum.
    content, asked = packed.read_bytes(), []

    class Downloader:
        def __init__(self, **_):
            pass

        def __call__(self, url, output_file, pooch):
            asked.append(url)
            Path(output_file).write_bytes(content)

    monkeypatch.setattr("pooch.HTTPDownloader", Downloader)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert np.array_equal(cifar.read_cifar10("test", fresh), images["test"])
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    content = content[:-9]
    (fresh / packed.name).unlink()
    with pytest.raises(DataError, match=r"could not be downloaded .* --data-dir"):
        cifar.read_cifar10("test", fresh)


def test_the_published_sum_is_the_binary_versions():
    name, (md5, layout) = next(iter(cifar.TARBALLS.items()))
    assert (name, md5) == ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
    assert layout == "cifar-10-batches-bin"


class Runs:
    """A pickle of this makes a file when a plain reader loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused_and_does_not(images, tmp_path):
    trap = tmp_path / "trap"
    content = pickle.dumps({b"data": np.zeros((COUNT, 3072), np.uint8), b"labels": Runs(trap)})
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*NAMES["train"], *NAMES["test"]):
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch was not read.*posix\.mkdir|nt\.mkdir"):
        cifar.read_cifar10("test", folder.parent)
    assert not trap.exists()
    pickle.loads(content)  # noqa: S301  it is a trap: the plain reader falls into it
    assert trap.is_dir()


REFUSED = {
    "eval": (b"cbuiltins\neval\n(U\x031+1tR.", "builtins.eval"),
    "an attribute of numpy": (b"cnumpy\nload\n.", "numpy.load"),
    "a dotted name": (
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.tobytes\x93.".replace(b"\x0c", b"\x0f"),
        "numpy.ndarray.tobytes",
    ),
    "state of a stand-in": (b"cnumpy\ndtype\n}U\x01aU\x01bsb.", "state"),
    "other bytes": (b"c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0rot13tR.", "something else"),
    "objects": (pickle.dumps({b"data": np.array([{}], object)}, 2), "not of uint8"),
    "floats": (pickle.dumps({b"data": np.zeros(3)}, 2), "not of uint8"),
    "cut short": (pickle.dumps({b"data": np.zeros(9, np.uint8)}, 2)[:-30], "no batch"),
    "empty": (b"", "no batch"),
    "a list": (pickle.dumps([1]), "no array called 'data'"),
    "no data": (pickle.dumps({b"labels": [1]}), "no array called 'data'"),
    "nothing inside": (b"cnumpy\ndtype\n.", "no array called 'data'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_whatever_else_a_pickle_holds_is_refused(kind):
    content, named = REFUSED[kind]
    with pytest.raises(DataError, match=named):
        load_batch(content, "a batch")


def test_nothing_that_one_pickle_does_outlasts_it():
    data = np.zeros((2, 3), np.uint8)
    for content, _ in REFUSED.values():
        with pytest.raises(DataError):
            load_batch(content, "a batch")
    assert np.array_equal(load_batch(pickle.dumps({b"data": data}, 2), "a batch"), data)


def test_too_large_a_file_is_not_opened(monkeypatch):
    monkeypatch.setattr("training.data.safe_pickle.MAX_BYTES", 10)
    with pytest.raises(DataError, match="too many"):
        load_batch(bytes(11), "a batch")


def test_batches_that_are_not_whole_are_named(images, tmp_path):
    folder = tmp_path / "py" / "cifar-10-batches-py"
    write_python(folder, images, pickled(2))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3"):
        cifar.read_cifar10("train", folder.parent)
    (folder / "test_batch").write_bytes(pickled(2)(np.zeros((5, 3072), np.uint8)))
    with pytest.raises(DataError, match=r"test_batch holds \(5, 3072\)"):
        cifar.read_cifar10("test", folder.parent)
    binary = tmp_path / "bin" / "cifar-10-batches-bin"
    write_binary(binary, images)
    content = (binary / "test_batch.bin").read_bytes()
    (binary / "test_batch.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match="truncated"):
        cifar.read_cifar10("test", binary.parent)
    (binary / "test_batch.bin").write_bytes(b"\x63" + content[1:])
    with pytest.raises(DataError, match="labels above 9"):
        cifar.read_cifar10("test", binary.parent)


def test_a_tarball_that_is_none_is_named(images, tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"no tarball")
    md5 = hashlib.md5(b"no tarball", usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "TARBALLS", {path.name: (md5, "cifar-10-batches-bin")})
    with pytest.raises(DataError, match="cannot be read"):
        cifar.read_cifar10("test", tmp_path)
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w:gz"):
        pass
    path.write_bytes(empty.getvalue())
    md5 = hashlib.md5(empty.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "TARBALLS", {path.name: (md5, "cifar-10-batches-bin")})
    with pytest.raises(DataError, match="test_batch"):
        cifar.read_cifar10("test", tmp_path)


def test_missing_data_says_where_to_put_it(images, tmp_path):
    with pytest.raises(DataError, match="put cifar-10-batches-py/, cifar-10-batches-bin/"):
        load_dataset("cifar10", "test", tmp_path, download=False)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("cifar10", "test", tmp_path / "absent", download=False)
    with pytest.raises(DataError, match="32x32 with 3 channels"):
        load_dataset("cifar10", "test", tmp_path, size=28)


@pytest.mark.data
def test_the_whole_set_is_read():
    root = os.environ.get("IAFVAE_DATA_DIR")
    if root is None or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("IAFVAE_DATA_DIR is not set, or has no cifar-10-batches-py")
    splits = ("train", "validation", "calibration", "test")
    parts = [load_dataset("cifar10", split, Path(root), download=False) for split in splits]
    assert [len(part) for part in parts] == [45_000, 2_500, 2_500, 10_000]
    official = np.concatenate([part.pixels for part in parts[:3]])
    # The mean of all training pixels, as published by many: 0.4914, 0.4822, 0.4465.
    assert np.allclose(official.mean(axis=(0, 2, 3)) / 255, (0.4914, 0.4822, 0.4465), atol=1e-4)
