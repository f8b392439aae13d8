"""Bundles that are not whole are refused, and the file at fault is named: manifests and arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from service.bundle import BundleError, load_bundle


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(path: Path, change) -> None:
    """Change the manifest's fields in place."""
    file = path / "manifest.json"
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def replace_file(path: Path, name: str, content: bytes) -> None:
    """Put other bytes in a file and tell the manifest, so that only its content can be at fault."""
    (path / name).write_bytes(content)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(path, lambda fields: fields["files"].__setitem__(name, record))


def npz(**arrays) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def drop(name):
    return lambda fields: fields.pop(name)


def put(value, *keys):
    def change(fields):
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = value

    return change


def _two_groups(names, kl_groups):
    sizes = {"height": 1, "width": 1}

    def change(fields):
        fields["latent"]["groups"] = [
            {"name": name, "channels": channels, **sizes}
            for name, channels in zip(names, (1, 2), strict=True)
        ]
        fields["kl_groups"] = kl_groups

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("name"), "lacks field(s) name"),
        (put(1, "nmae"), "unknown field(s) nmae"),
        (put(1, "image", "depth"), "manifest.image has unknown field(s) depth"),
        (put("4", "image", "height"), "manifest.image.height must be int"),
        (put(True, "image", "height"), "manifest.image.height must be int"),
        (put(0, "image", "height"), "at least 1"),
        (put(1, "schema_version"), "schema_version is 1"),
        (put(9, "noise_version"), "noise_version is 9"),
        (put(1, "noise_version"), "noise_version is 1"),
        (put("../evil", "name"), "name '../evil'"),
        (put(5, "latent", "dim"), "dim must be the sum"),
        (put(1, "calibration", "fit_images"), "manifest.calibration.fit_images must be"),
        (put(["z", "y"], "kl_groups"), "kl_groups"),
        (put("float\u202432", "precision"), "precision"),
        (put("a\r\nx: y", "precision"), "precision"),
        (put([], "latent", "groups"), "dim must be the sum"),
        (_two_groups("zy", ["z", "z"]), "kl_groups must have different names"),
        (_two_groups("zz", ["z", "y"]), "latent: groups must have different names"),
        (put("gaussian", "likelihood", "kind"), "must be one of"),
        (put({"kind": "threshold"}, "preprocessing"), "must be one of"),
        (put({"kind": "none"}, "preprocessing"), "'binarize' for a bernoulli likelihood alone"),
        (put(["a", "a"], "statistics"), "statistics must have different names"),
        (put([], "statistics"), "statistics must have different names"),
        (put([], "graphs", "sample", "inputs"), "graphs.sample.inputs must be eps float32[N,3]"),
        (put(["M", 3], "graphs", "decode", "inputs", 0, "shape"), "graphs.decode.inputs must be"),
        (put("float16", "graphs", "decode", "inputs", 0, "dtype"), "must be one of"),
        (lambda f: f["graphs"].pop("encode"), "graphs must be sample, decode, encode, score"),
        (lambda f: f["graphs"].pop("evidence"), "graphs must be sample, decode, encode, score"),
        (put("../sample.onnx", "graphs", "sample", "cpu"), "must be a plain name"),
        (put("cpu/../x.onnx", "graphs", "sample", "cpu"), "must be a plain name"),
        (put("other/x.onnx", "graphs", "sample", "portable"), "must be a plain name"),
        (put("/etc/passwd", "weights_file"), "must be a plain name"),
        (put(8, "weights", 0, "length"), "length of prior_mean"),
        (put("b", "weights", 0, "name"), "weights must have different names"),
        (put(0, "weights", 1, "offset"), "prior_scale overlaps"),
        (put(11, "weights", 1, "offset"), "prior_scale overlaps"),  # the last byte of three floats
        (put(2**40, "weights", 1, "offset"), "behind the end of weights.bin"),
        (put("..", "weights_file"), "must be a plain name"),
        (put("a\\b", "weights_file"), "must be a plain name"),
        (put("manifest.json", "weights_file"), "must be a plain name"),
        (put({"sha256": "0" * 64, "bytes": 1}, "files", "../x"), "must be a plain name"),
        (lambda f: f["files"].pop("weights.bin"), "files lacks weights.bin"),
        (put("xyz", "files", "weights.bin", "sha256"), "64 lower-case"),
        (put(-1, "scoring", "default_seed"), "default_seed"),
        (put(1.0, "scoring", "alpha"), "alpha"),
        (put([1, 1], "scoring", "calibrated_importance_samples"), "listed once"),
        (put(3, "row_block"), "row_block"),
        (put(float("nan"), "canaries", "rtol"), "finite"),
    ],
)
def test_manifests_that_contradict_the_contract(copy, change, words):
    edit(copy, change)
    with pytest.raises(BundleError) as caught:
        load_bundle(copy)
    message = str(caught.value)
    assert words in message
    assert str(copy) in message
    assert "manifest.json" in message


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b'{"name": 1, "name": 2}'])
def test_manifests_that_are_none(copy, raw):
    (copy / "manifest.json").write_bytes(raw)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["score.onnx", "weights.bin", "calibration.npz", "manifest.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        load_bundle(copy)


def test_truncated_and_corrupt_files_are_named(copy):
    weights = copy / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"weights\.bin: has \d+ bytes"):
        load_bundle(copy)
    weights.write_bytes(whole + b"\x00")
    with pytest.raises(BundleError, match=r"weights\.bin: has \d+ bytes"):
        load_bundle(copy)
    weights.write_bytes(whole[:-1] + b"\x01" if whole[-1] != 1 else whole[:-1] + b"\x02")
    with pytest.raises(BundleError, match=r"weights\.bin: does not have the SHA-256"):
        load_bundle(copy)


def test_a_file_that_changes_after_the_check_is_not_read(copy):
    """As an operator's copy over a bundle that is being loaded would have it."""
    bundle, weights = load_bundle(copy), (copy / "weights.bin").read_bytes()
    assert bundle.read("weights.bin") == weights
    (copy / "weights.bin").write_bytes(bytes(len(weights)))
    with pytest.raises(BundleError, match=r"weights\.bin: changed while the bundle was loaded"):
        bundle.read("weights.bin")


def test_strangers_in_the_directory_are_named_but_hidden_files_are_not(copy):
    (copy / ".DS_Store").touch()
    load_bundle(copy)
    (copy / "more.onnx").touch()
    with pytest.raises(BundleError, match=r"more\.onnx: not listed"):
        load_bundle(copy)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_strangers_name_can_be_printed_and_is_short(copy):
    (copy / os.fsdecode(b"\xe9\x1b]0;x\x07\n")).touch()
    with pytest.raises(BundleError, match="not listed") as refused:
        load_bundle(copy)
    assert str(refused.value).isprintable()
    for index in range(1000):
        (copy / f"{index:0200}").touch()
    with pytest.raises(BundleError, match="remove what is not part") as refused:
        load_bundle(copy)
    assert len(str(refused.value)) < 1500


def in_folders(path: Path) -> Path:
    """The bundle with its graphs in the two folders, and the weights beside the CPU's."""
    fields = json.loads((path / "manifest.json").read_text())
    for folder in ("portable", "cpu"):
        (path / folder).mkdir()
    for name in [file for file in fields["files"] if file.endswith(".onnx")]:
        for folder in ("portable", "cpu"):
            shutil.copyfile(path / name, path / folder / name)
            fields["files"][f"{folder}/{name}"] = fields["files"][name]
            fields["graphs"][name.removesuffix(".onnx")][folder] = f"{folder}/{name}"
        del fields["files"][name]
        (path / name).unlink()
    (path / "weights.bin").rename(path / "cpu" / "weights.bin")
    fields["files"]["cpu/weights.bin"] = fields["files"].pop("weights.bin")
    fields["weights_file"] = "cpu/weights.bin"
    (path / "manifest.json").write_text(json.dumps(fields))
    return path


def test_graphs_in_folders(copy):
    assert in_folders(copy).is_dir()
    load_bundle(copy)
    (copy / "cpu" / ".DS_Store").touch()
    load_bundle(copy)
    (copy / "portable" / "more.onnx").touch()
    with pytest.raises(BundleError, match=r"portable/more\.onnx: not listed"):
        load_bundle(copy)
    (copy / "portable" / "more.onnx").unlink()
    (copy / "other").mkdir()
    with pytest.raises(BundleError, match="other: not listed"):
        load_bundle(copy)


def test_folders_that_are_links_out_of_the_bundle(copy, tmp_path):
    shutil.move(in_folders(copy) / "cpu", tmp_path / "elsewhere")
    (copy / "cpu").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        load_bundle(copy)


def test_links_that_leave_the_bundle(copy, tmp_path):
    outside = tmp_path / "weights.bin"
    shutil.move(copy / "weights.bin", outside)
    (copy / "weights.bin").symlink_to(outside)
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        load_bundle(copy)


def test_a_linked_bundle_directory_loads(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    assert load_bundle(tmp_path / "link").manifest.name == "tiny"


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_no_directory(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is no directory"):
        load_bundle(tmp_path / path)


def scores(**changes):
    f32 = np.float32
    usual = {"fit": np.ones((150, 3), f32), "usual": np.ones((200, 3), f32)}
    for k in (1, 16, 64):
        for kind in ("log_likelihood_nats", "distance"):
            usual[f"{kind}_k{k}"] = np.arange(200, dtype=f32)
        usual[f"fit_log_likelihood_nats_k{k}"] = np.arange(150, dtype=f32)
    usual |= {name: np.ones((4, 4), f32) for name in ("place_mean", "place_deviation")}
    usual |= {name: np.ones((1, 1), f32) for name in ("box_mean", "box_deviation")}
    return npz(**{**usual, **changes})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive", "cannot be read as arrays"),
        (scores()[:500], "cannot be read as arrays"),
        (scores(extra=np.zeros(1)), "the manifest demands"),
        (scores(log_likelihood_nats_k1=np.zeros(3, np.float32)), r"must be float32 \[200\]"),
        (scores(log_likelihood_nats_k1=np.zeros(200)), "must be finite float32"),
        (scores(usual=np.ones((199, 3), np.float32)), r"must be float32 \[199\]"),
        (scores(fit=np.ones((149, 3), np.float32)), r"must be float32 \[149\]"),
        (scores(fit=np.ones((150, 2), np.float32)), r"must be float32 \[150, 3\]"),
        (scores(fit=np.float32(1), usual=np.float32(1)), r"fit must be float32 \[1, 3\]"),
        (scores(place_mean=np.ones((4, 3), np.float32)), r"must be float32 \[4, 4\]"),
        (scores(log_likelihood_nats_k1=-np.arange(200, dtype=np.float32)), "finite and sorted"),
        (scores(log_likelihood_nats_k1=np.full(200, np.nan, np.float32)), "must be finite"),
    ],
)
def test_bad_calibration(copy, content, words):
    replace_file(copy, "calibration.npz", content)
    with pytest.raises(BundleError, match=rf"calibration\.npz: .*{words}"):
        load_bundle(copy)


@pytest.mark.parametrize(("field", "name"), [("images", "usual"), ("fit_images", "fit")])
def test_another_number_of_images_than_the_manifest_says(copy, field, name):
    edit(copy, put(9, "calibration", field))
    with pytest.raises(BundleError, match=rf"calibration\.npz: {name} has \d+ images, not 9"):
        load_bundle(copy)


def strange_archives():
    """Sound by their hashes, and each a different surprise to whoever opens it."""
    import io
    import zipfile

    broken = bytearray(_compressed())
    broken[100:108] = b"\xff" * 8  # behind the archive's own headers
    yield "broken stream", bytes(broken)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693951,), }"
    for name, length in (("endless", len(header) + 1), ("no header", 60_000)):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            start = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
            archive.writestr("log_likelihood_nats_k1.npy", start + header + b"\n")
        yield name, stream.getvalue()
    encrypted = bytearray(scores())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(signature) + offset] |= 1
    yield "encrypted", bytes(encrypted)


def _compressed() -> bytes:
    import io

    stream = io.BytesIO()
    np.savez_compressed(stream, log_likelihood_nats_k1=np.random.default_rng(0).random(200))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "content"), list(strange_archives()), ids=lambda v: str(v)[:13])
def test_strange_archives(copy, name, content):
    replace_file(copy, "calibration.npz", content)
    with pytest.raises(BundleError, match=r"calibration\.npz: cannot be read as arrays"):
        load_bundle(copy)


def test_pickles_are_not_opened(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    evil = np.array([Evil()], dtype=object)
    replace_file(copy, "calibration.npz", scores(log_likelihood_nats_k1=evil))
    with pytest.raises(BundleError, match=r"calibration\.npz: cannot be read as arrays"):
        load_bundle(copy)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("sample/in/eps"), "lacks sample/in/eps"),
        (lambda a: a.update(stranger=np.zeros(1)), "unknown arrays"),
        (lambda a: a.update({"sample/in/eps": np.zeros((3, 4), np.float32)}), "must be float32"),
        (lambda a: a.update({"sample/in/eps": np.zeros((2, 3), np.float32)}), "must be float32"),
        (lambda a: a.update({"sample/in/eps": np.zeros((3, 3))}), "must be float32"),
        (lambda a: a.update({"sample/in/eps": np.full((3, 3), np.inf, np.float32)}), "be finite"),
        (lambda a: a.update({"score/in/owner": np.full(5, 3)}), "points outside"),
    ],
)
def test_bad_canaries(copy, tiny, tiny_model, change, words):
    arrays = tiny.canaries(tiny_model)
    change(arrays)
    replace_file(copy, "canaries.npz", npz(**arrays))
    with pytest.raises(BundleError, match=rf"canaries\.npz: .*{words}"):
        load_bundle(copy)


def test_a_zip_bomb_is_not_unpacked(copy, monkeypatch):
    monkeypatch.setattr("service.bundle.reader.MAX_ARRAY_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match="unpacks to more than"):
        load_bundle(copy)
