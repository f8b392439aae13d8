"""CIFAR-10 is read from every layout it comes in, and nothing in a file can run or mislead."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from training.data import SPLITS, FolderOptions, cifar, load_dataset
from training.data.splits import cifar10_indices
from training.errors import DataError

CHECKPOINTS = Path(__file__).resolve().parents[3] / "training" / "checkpoints"
COUNT = 12  # images a batch, instead of 10,000
NAMES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


@pytest.fixture
def images(monkeypatch, tmp_path):
    """Small batches: part -> uint8 [N, 3, 32, 32] in the order of the files."""
    monkeypatch.setattr(cifar, "BATCH_IMAGES", COUNT)
    monkeypatch.setattr("training.data.download.cache_dir", lambda: tmp_path / "cache")
    rng = np.random.default_rng(0)
    parts = {
        part: rng.integers(0, 256, (len(names) * COUNT, 3, 32, 32), np.uint8)
        for part, names in NAMES.items()
    }
    content = {
        part: hashlib.sha256(b"".join(map(digest, in_order(array)))).hexdigest()
        for part, array in parts.items()
    }
    monkeypatch.setattr(cifar, "CONTENT", content)
    return parts


def digest(image):
    return hashlib.sha256(image.tobytes()).digest()


def in_order(array):
    """The images in the order of their SHA-256."""
    return np.stack(sorted(array, key=digest))


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
def test_unpacked_batches_are_read_whoever_wrote_them(images, tmp_path, kind, bare):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    write_python(folder, images, PICKLES[kind])
    data_dir = folder if bare else folder.parent
    for part, expected in images.items():
        read = cifar.read_cifar10(part, data_dir, download=False)
        assert np.array_equal(read, in_order(expected))


def test_the_order_of_files_and_of_images_in_them_means_nothing(images, tmp_path):
    shuffled = {part: np.random.default_rng(1).permutation(array) for part, array in images.items()}
    write_python(tmp_path / "one" / "cifar-10-batches-py", images, pickled(2))
    write_binary(tmp_path / "other" / "cifar-10-batches-bin", shuffled)
    one, other = (
        cifar.read_cifar10("train", tmp_path / name, download=False) for name in ("one", "other")
    )
    assert np.array_equal(one, other)


def test_images_that_are_not_the_published_ones_are_refused(images, tmp_path):
    changed = {part: array.copy() for part, array in images.items()}
    changed["train"][7, 0, 0, 0] ^= 1
    write_binary(tmp_path / "cifar-10-batches-bin", changed)
    with pytest.raises(DataError, match=r"not the published images of CIFAR-10: delete it"):
        cifar.read_cifar10("train", tmp_path, download=False)
    assert len(cifar.read_cifar10("test", tmp_path, download=False)) == COUNT


def test_the_binary_version_is_read_unpacked_and_packed(images, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    write_binary(folder, images)
    read = cifar.read_cifar10("test", folder.parent, download=False)
    assert np.array_equal(read, in_order(images["test"]))
    packed = tmp_path / "packed" / "cifar-10-binary.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    read = cifar.read_cifar10("train", packed.parent)
    assert np.array_equal(read, in_order(images["train"]))
    md5 = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "BINARY_MD5", md5)
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
    assert np.array_equal(cifar.read_cifar10("test", fresh), in_order(images["test"]))
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    content = content[:-9]
    (fresh / packed.name).unlink()
    with pytest.raises(DataError, match=r"could not be downloaded .* --data-dir"):
        cifar.read_cifar10("test", fresh)


def test_the_published_sum_is_the_binary_versions():
    assert cifar.BINARY_TARBALL == "cifar-10-binary.tar.gz"
    assert cifar.BINARY_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert cifar.TARBALLS[cifar.BINARY_TARBALL] == "cifar-10-batches-bin"


class Runs:
    """A pickle of this makes a file when a plain reader loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_does_not(images, tmp_path):
    """Its pixels are taken all the same: nothing that it asks for is looked at."""
    trap = tmp_path / "trap"
    data = images["test"].reshape(COUNT, -1)
    content = pickle.dumps({b"data": data, b"labels": Runs(trap)})
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(content)
    read = cifar.read_cifar10("test", folder.parent, download=False)
    assert np.array_equal(read, in_order(images["test"]))
    assert not trap.exists()
    pickle.loads(content)  # noqa: S301  it is a trap: the plain reader falls into it
    assert trap.is_dir()


REFUSED = {
    "objects": pickle.dumps({b"data": np.array([{}], object)}, 2),
    "another size": pickle.dumps({b"data": np.zeros(9, np.uint8)}, 2),
    "text": pickle.dumps({b"data": "\u0100" * (COUNT * 3072)}, 2),
    "cut short": pickle.dumps({b"data": np.zeros((COUNT, 3072), np.uint8)}, 2)[:-9000],
    "empty": b"",
    "no pickle": b"\xff" * 99,
    # The usual reader makes a memo of 2 GB of these nine bytes ...
    "a large memo": b"\x80\x04Nr\xff\xff\xff\x0f.",
    # ... and of these few, doubled again and again, a tuple that takes for ever to compare.
    "a bomb": b"\x80\x02(" + b"N\x85" + b"2\x86" * 60 + b".",
    "a length that lies": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"abc.",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_whatever_else_a_pickle_holds_is_refused_at_once(images, tmp_path, kind):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(REFUSED[kind])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="test_batch is no batch of CIFAR-10"):
            cifar.read_cifar10("test", tmp_path, download=False)
        assert tracemalloc.get_traced_memory()[1] < 2 * cifar.MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_pickle_of_many_opcodes_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(cifar, "BATCH_IMAGES", COUNT)
    monkeypatch.setattr(cifar, "MAX_OPCODES", 100)
    late = pickle.dumps([[0] * 1000, bytes(COUNT * 3072)], 4)
    with pytest.raises(DataError, match="no array"):
        cifar._pickled(late, "a batch")


def test_batches_that_are_not_whole_are_named(images, tmp_path):
    folder = tmp_path / "py" / "cifar-10-batches-py"
    write_python(folder, images, pickled(2))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3"):
        cifar.read_cifar10("train", folder.parent)
    (folder / "test_batch").write_bytes(pickled(2)(np.zeros((5, 3072), np.uint8)))
    with pytest.raises(DataError, match="test_batch is no batch of CIFAR-10: no array"):
        cifar.read_cifar10("test", folder.parent)
    binary = tmp_path / "bin" / "cifar-10-batches-bin"
    write_binary(binary, images)
    content = (binary / "test_batch.bin").read_bytes()
    (binary / "test_batch.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match="truncated"):
        cifar.read_cifar10("test", binary.parent)


def test_a_tarball_that_is_none_is_named(images, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"no tarball")
    with pytest.raises(DataError, match="cannot be read"):
        cifar.read_cifar10("test", tmp_path)
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w:gz"):
        pass
    path.write_bytes(empty.getvalue())
    with pytest.raises(DataError, match="test_batch"):
        cifar.read_cifar10("test", tmp_path)


def test_missing_data_says_where_to_put_it(images, tmp_path):
    with pytest.raises(DataError, match="put cifar-10-batches-py/, cifar-10-batches-bin/"):
        load_dataset("cifar10", "test", tmp_path, download=False)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("cifar10", "test", tmp_path / "absent", download=False)
    with pytest.raises(DataError, match="32x32 with 3 channels"):
        load_dataset("cifar10", "test", tmp_path, FolderOptions(size=(28, 28)))


def test_the_held_out_places_are_disjoint_and_fixed():
    parts = {split: cifar10_indices(50_000, split) for split in SPLITS[:3]}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 45_000,
        "validation": 2_500,
        "calibration": 2_500,
    }
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(50_000))
    # Written down once: a change here would let a model be tested on what it was trained on.
    assert parts["validation"][:3].tolist() == [60, 61, 90]
    assert parts["calibration"][:3].tolist() == [33, 36, 65]


@pytest.mark.data
def test_the_whole_set_is_read():
    root = os.environ.get("IAFVAE_DATA_DIR")
    if root is None or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("IAFVAE_DATA_DIR is not set, or has no cifar-10-batches-py")
    parts = [load_dataset("cifar10", split, Path(root), download=False) for split in SPLITS]
    # The shipped checkpoint says that it was trained on these.
    state = CHECKPOINTS / "cifar10-small" / "checkpoints" / "step-00015466" / "state.json"
    told = json.loads(state.read_bytes())["content"]["state"]["images"]
    assert told == {
        "count": 45_000,
        "sha256": hashlib.sha256(parts[0].pixels.tobytes()).hexdigest(),
    }
    assert [len(part) for part in parts] == [45_000, 2_500, 2_500, 10_000]
    official = np.concatenate([part.pixels for part in parts[:3]])
    # The mean of all training pixels, as published by many: 0.4914, 0.4822, 0.4465.
    assert np.allclose(official.mean(axis=(0, 2, 3)) / 255, (0.4914, 0.4822, 0.4465), atol=1e-4)
