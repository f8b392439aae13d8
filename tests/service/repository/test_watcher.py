"""Following the directory: nothing is touched before it is complete and at rest."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.engine import onnxruntime_engine
from service.settings import SHIPPED_BUNDLE


def test_what_is_there_is_left_alone(watched):
    runtime = watched.registry.find().runtime
    watched.looks(3)
    assert watched.registry.find().runtime is runtime
    assert watched.registry.failed == {}


def test_a_new_bundle_is_loaded_at_the_second_look(watched, root, edition, put):
    put(edition("1.10.0"), root / "b")
    watched.looks()
    assert watched.loaded == {"a": "1.9.0"}
    watched.looks()
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}
    assert watched.client.post("/v1/sample").headers["x-iafvae-version"] == "1.10.0"


def test_a_changed_bundle_is_swapped_in(watched, root, edition, put):
    put(edition("1.9.0", build="again"), root / "a")
    watched.looks(2)
    answer = watched.client.post("/v1/sample")
    assert answer.headers["x-iafvae-bundle"] == watched.registry.find().runtime.bundle.hash
    assert watched.client.metric("iafvae_model_changes_total", model="tiny", change="swapped") == 1


def test_a_bundle_that_is_being_copied_is_not_touched(watched, root, edition):
    """File by file, the manifest first, and a look after each half of a file."""
    source = edition("1.10.0")
    (root / "b").mkdir()
    for file in sorted(source.iterdir(), key=lambda file: file.name != "manifest.json"):
        data = file.read_bytes()
        for part in (data[: len(data) // 2], data):
            (root / "b" / file.name).write_bytes(part)
            watched.looks()
            assert watched.loaded == {"a": "1.9.0"}
            assert watched.registry.failed == {}, "it is not even tried"
    watched.looks()
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}


def test_a_copy_that_pauses_is_refused_and_loaded_when_it_is_whole(watched, root, edition):
    shutil.copytree(edition("1.10.0"), root / "b")
    weights = (root / "b" / "weights.bin").read_bytes()
    (root / "b" / "weights.bin").unlink()
    watched.looks(2)
    assert "weights.bin: is missing" in watched.registry.failed["b"]
    (root / "b" / "weights.bin").write_bytes(weights[:100])
    watched.looks(2)
    assert "weights.bin: has 100 bytes" in watched.registry.failed["b"]
    (root / "b" / "weights.bin").write_bytes(weights)
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}
    assert watched.registry.failed == {}


def test_weights_that_are_completed_in_place_are_seen(watched, root):
    """Neither their folder nor anything beside that changes."""
    shutil.copytree(SHIPPED_BUNDLE, root / "b")
    weights = root / "b" / "cpu" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    watched.looks()
    weights.write_bytes(whole[:200])
    watched.looks()
    assert watched.registry.failed == {}, "it still changes"
    watched.looks()
    assert "weights.bin: has 200 bytes" in watched.registry.failed["b"]
    weights.write_bytes(whole)
    watched.looks(2)
    assert watched.loaded.keys() == {"a", "b"}
    assert watched.registry.failed == {}


@pytest.mark.parametrize("said", ["Input/output error", "Connection timed out"])
def test_an_error_that_passes_is_said_once_and_the_bundle_tried_again(
    watched, root, edition, put, monkeypatch, caplog, said
):
    """A network's file system may be slow; that is not the bundle's doing."""
    put(edition("1.10.0"), root / "b")
    read = Path.read_bytes

    def fails(path):
        if path.name == "score.onnx" and path.parent.name == "b":
            raise OSError(errno.EIO if "Input" in said else errno.ETIMEDOUT, said)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with caplog.at_level(logging.WARNING, "iafvae"):
        watched.looks(5)
    assert said in watched.registry.failed["b"]
    assert caplog.text.count(said) == 1
    monkeypatch.undo()
    watched.looks()
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}
    assert watched.registry.failed == {}


@pytest.mark.parametrize("fails", ["made", "run"])
def test_a_bundle_that_finds_no_memory_is_tried_again(
    watched, root, edition, put, monkeypatch, fails
):
    """On a GPU, as where another process has its memory for a while: ONNX Runtime says it in words,
    when a session is made or when it computes."""

    def full(*_, **__):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1073741824")

    if fails == "made":
        monkeypatch.setattr(onnxruntime_engine.ort, "InferenceSession", full)
    else:
        monkeypatch.setattr(onnxruntime_engine.Engine, "compute", full)
    put(edition("1.10.0"), root / "b")
    watched.looks(3)
    assert "memory" in watched.registry.failed["b"]
    assert "export" not in watched.registry.failed["b"], "it is no fault of the bundle"
    monkeypatch.undo()
    watched.looks()
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}


def test_what_was_refused_for_a_pin_is_loaded_once_it_is_unpinned(watched, root, edition, put):
    """The message says what to do, and doing it is enough."""
    watched.manager.pin("tiny", "1.9.0")
    put(edition("2.0.0"), root / "a")
    watched.looks(3)
    assert "unpin tiny" in watched.registry.failed["a"]
    watched.manager.pin("tiny", None)
    watched.looks(2)
    assert watched.loaded == {"a": "2.0.0"}
    assert watched.registry.failed == {}


def test_what_was_refused_for_another_of_its_version_is_loaded_once_that_is_replaced(
    watched, root, edition, put
):
    put(edition("1.9.0", build="again"), root / "b")
    watched.looks(3)
    assert "both named 'tiny', version 1.9.0" in watched.registry.failed["b"]
    put(edition("2.0.0"), root / "a")
    watched.looks(4)
    assert watched.loaded == {"a": "2.0.0", "b": "1.9.0"}
    assert watched.registry.failed == {}


def test_a_served_bundle_that_is_overwritten_in_place_goes_on_answering(watched, root, edition):
    """As `cp` does it: the files keep their inodes, and are empty for a moment."""
    body = {"seed": 3, "n": 4}
    before = watched.client.post("/v1/sample", json=body).json()["images"]
    source = edition("1.10.0")
    for file in sorted((root / "a").iterdir()):
        file.write_bytes(b"")
        watched.looks(2)
        assert watched.client.post("/v1/sample", json=body).json()["images"] == before
        file.write_bytes((source / file.name).read_bytes())
    assert watched.loaded == {"a": "1.9.0"}
    watched.looks(2)
    assert watched.loaded == {"a": "1.10.0"}


@pytest.mark.parametrize("name", [".b", "b.tmp", "b.PART", "b~", "b.old"])
def test_hidden_and_temporary_names_are_no_bundles(watched, root, edition, name):
    shutil.copytree(edition("1.10.0"), root / name)
    watched.looks(3)
    assert watched.loaded == {"a": "1.9.0"}
    assert watched.registry.failed == {}


def test_folders_of_graphs_that_link_to_their_bundle_have_an_end(watched, root):
    (root / "b").mkdir()
    (root / "b" / "manifest.json").write_text("{}")
    for name in ("cpu", "portable"):
        (root / "b" / name).symlink_to(".", target_is_directory=True)
    watched.looks(3)
    assert watched.loaded == {"a": "1.9.0"}
    assert "b" in watched.registry.failed


def test_a_refused_bundle_is_said_once_and_tried_again_when_it_changes(
    watched, root, edition, put, caplog
):
    put(edition("1.10.0"), root / "b")
    card = root / "b" / "MODEL_CARD.md"
    good = card.read_bytes()
    card.write_bytes(good.swapcase())
    with caplog.at_level(logging.WARNING, "iafvae"):
        watched.looks(5)
    assert len([r for r in caplog.records if "was not loaded" in r.getMessage()]) == 1
    failures = {"directory": "b"}
    assert watched.client.metric("iafvae_model_load_failures_total", **failures) == 1
    listed = watched.client.get("/v1/models").json()
    assert listed["failed"][0]["directory"] == "b"
    assert "MODEL_CARD.md: does not have the SHA-256" in listed["failed"][0]["reason"]
    assert watched.client.get("/readyz").status_code == 200
    card.write_bytes(good)
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}


def test_what_was_refused_at_the_start_is_tried_again_when_it_changes(
    sites, serve, root, edition, put
):
    put(edition("1.10.0"), root / "b")
    weights = (root / "b" / "weights.bin").read_bytes()
    (root / "b" / "weights.bin").write_bytes(weights[:-1])
    watched = sites.Watched(serve(models=root, watch_seconds=3600.0))
    watched.looks(2)
    assert watched.client.metric("iafvae_model_load_failures_total", directory="b") == 1
    assert watched.loaded == {"a": "1.9.0"}
    (root / "b" / "weights.bin").write_bytes(weights)
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}


def test_a_change_that_keeps_sizes_and_times_is_seen(watched, root, edition, put):
    put(edition("1.10.0"), root / "b")
    watched.looks(2)
    weights = root / "b" / "weights.bin"
    status = weights.stat()
    weights.write_bytes(np.roll(np.fromfile(weights, np.uint8), 1).tobytes())
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = watched.manager.attempted["b"]
    watched.looks(2)
    assert watched.manager.attempted["b"] != before


def test_a_link_that_is_turned_is_followed(sites, serve, root, edition, put):
    """`current -> release-2`, as deployments do it; the other directories are none of ours."""
    releases = Path(root).with_name("releases")
    releases.mkdir()
    put(edition("1.9.0"), releases / "1")
    put(edition("1.10.0"), releases / "2")
    current = releases.with_name("current")
    current.symlink_to(releases / "1")
    watched = sites.Watched(serve(models=current))
    fresh = current.with_name("fresh")
    fresh.symlink_to(releases / "2")
    fresh.replace(current)
    watched.looks(2)
    assert list(watched.loaded.values()) == ["1.10.0"]


def test_it_goes_on_after_an_unforeseen_error(serve, root, edition, put, monkeypatch, caplog):
    client = serve(models=root, watch_seconds=0.02)
    store = client.app.state.manager.store
    looked, fail = store.survey, [True]

    def once():
        if fail:
            fail.clear()
            raise RuntimeError("a file system with a mind of its own")
        return looked()

    monkeypatch.setattr(store, "survey", once)
    put(edition("1.10.0"), root / "b")
    for _ in range(500):
        if client.get("/v1/models/tiny").json()["version"] == "1.10.0":
            break
    assert not fail
    assert client.get("/v1/models/tiny").json()["version"] == "1.10.0"
    assert "trying again" in caplog.text
