"""Following the directory: nothing is touched before it is complete and at rest."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.watcher import Watcher


@pytest.fixture
def root(tmp_path, edition, put):
    """A directory of models with one bundle, tiny 1.9.0, in `a`."""
    models = tmp_path / "models"
    models.mkdir()
    put(edition("1.9.0"), models / "a")
    return models


class Watched:
    """An application, and a watcher that looks when told to."""

    def __init__(self, client):
        self.client = client
        self.manager, self.registry = client.app.state.manager, client.app.state.context.registry
        self.watcher = Watcher(self.manager, self.registry)
        self.looks(2)  # what was loaded at the start is at rest

    def looks(self, times=1):
        for _ in range(times):
            self.client.run(self.watcher.look())

    @property
    def loaded(self):
        return {m.directory: m.version for m in self.registry.models}


@pytest.fixture
def watched(serve, root):
    return Watched(serve(models=root))


def test_what_is_there_is_left_alone(watched):
    runtime = watched.registry.get()
    watched.looks(3)
    assert watched.registry.get() is runtime
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
    assert answer.headers["x-iafvae-bundle"] == watched.registry.get().bundle.hash
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


def test_what_was_refused_at_the_start_is_tried_again_when_it_changes(serve, root, edition, put):
    put(edition("1.10.0"), root / "b")
    weights = (root / "b" / "weights.bin").read_bytes()
    (root / "b" / "weights.bin").write_bytes(weights[:-1])
    watched = Watched(serve(models=root, watch_seconds=3600.0))
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


def test_a_removed_bundle_is_unloaded_at_the_second_look(watched, root, edition, put):
    put(edition("1.10.0"), root / "b")
    watched.looks(2)
    shutil.rmtree(root / "b")
    watched.looks()
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}
    watched.looks()
    assert watched.loaded == {"a": "1.9.0"}
    put(edition("1.10.0"), root / "b")
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "1.10.0"}, "it may come back"


def test_the_default_model_stays_when_its_directory_goes(watched, root, edition, put, caplog):
    put(edition("3", name="other"), root / "o")
    watched.looks(2)
    (root / "a").rename(root / ".a")
    with caplog.at_level(logging.WARNING, "iafvae"):
        watched.looks(5)
    assert len([r for r in caplog.records if "directory a has gone" in r.getMessage()]) == 1
    assert watched.loaded == {"a": "1.9.0", "o": "3"}
    assert "its directory has gone; tiny is the default" in watched.registry.failed["a"]
    assert watched.client.post("/v1/sample").status_code == 200
    assert watched.client.get("/readyz").status_code == 200
    (root / ".a").rename(root / "a")
    watched.looks(2)
    assert watched.registry.failed == {}


def test_a_renamed_directory_keeps_its_model(watched, root):
    (root / "a").rename(root / "z")
    watched.looks(4)
    assert watched.loaded == {"z": "1.9.0"}
    assert watched.registry.failed == {}


@pytest.mark.parametrize("default", [True, False])
def test_a_copy_is_loaded_when_what_it_was_a_copy_of_has_gone(watched, root, edition, put, default):
    """It is refused while the first is there, and its files do not change afterwards."""
    original = root / "a"
    if not default:
        original = put(edition("1.0.0", name="other"), root / "o")
        watched.looks(2)
    shutil.copytree(original, root / "copy")
    watched.looks(2)
    assert "copy" in watched.registry.failed
    shutil.rmtree(original)
    watched.looks(5)
    assert watched.loaded == ({"copy": "1.9.0"} if default else {"a": "1.9.0", "copy": "1.0.0"})
    assert watched.registry.failed == {}


def test_a_broken_bundle_is_not_tried_at_every_look_because_another_has_gone(
    watched, root, edition
):
    shutil.copytree(edition("1.10.0"), root / "bad")
    (root / "bad" / "weights.bin").write_bytes(b"")
    watched.looks(2)
    shutil.rmtree(root / "a")  # the default model, which stays
    watched.looks(8)
    failures = watched.client.metric("iafvae_model_load_failures_total", directory="bad")
    assert failures <= 2


@pytest.mark.parametrize("how", ["empty", "gone", "no directory"])
def test_a_directory_that_is_not_mounted_unloads_nothing(watched, root, edition, put, how, caplog):
    put(edition("3", name="other"), root / "o")
    watched.looks(2)
    root.rename(root.with_name("away"))
    if how == "empty":
        root.mkdir()
    elif how == "no directory":
        root.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "iafvae"):
        watched.looks(4)
    assert watched.loaded == {"a": "1.9.0", "o": "3"}
    assert len([r for r in caplog.records if "what is loaded stays" in r.getMessage()]) == 1
    if root.is_dir():
        root.rmdir()
    else:
        root.unlink(missing_ok=True)
    root.with_name("away").rename(root)
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "o": "3"}


def test_a_bundle_for_which_there_is_no_room_is_loaded_when_there_is(serve, root, edition, put):
    watched = Watched(serve(models=root, max_models=1))
    put(edition("1.10.0"), root / "b")
    watched.looks(3)
    assert "IAFVAE_MAX_MODELS is 1" in watched.registry.failed["b"]
    assert watched.client.metric("iafvae_model_load_failures_total", directory="b") == 0
    shutil.rmtree(root / "a")
    watched.looks(4)
    assert watched.loaded == {"b": "1.10.0"}, "the place of what has gone is free"
    assert watched.registry.failed == {}


def test_one_bundle_alone_is_followed(serve, root, edition, put):
    watched = Watched(serve(models=root / "a"))
    put(edition("1.10.0"), root / "a")
    watched.looks(2)
    assert watched.loaded == {"a": "1.10.0"}
    shutil.rmtree(root / "a")
    watched.looks(3)
    assert watched.loaded == {"a": "1.10.0"}


def test_a_link_that_is_turned_is_followed(serve, root, edition, put):
    """`current -> release-2`, as deployments do it; the other directories are none of ours."""
    releases = Path(root).with_name("releases")
    releases.mkdir()
    put(edition("1.9.0"), releases / "1")
    put(edition("1.10.0"), releases / "2")
    current = releases.with_name("current")
    current.symlink_to(releases / "1")
    watched = Watched(serve(models=current))
    fresh = current.with_name("fresh")
    fresh.symlink_to(releases / "2")
    fresh.replace(current)
    watched.looks(2)
    assert list(watched.loaded.values()) == ["1.10.0"]


def test_it_goes_on_after_an_unforeseen_error(serve, root, edition, put, monkeypatch, caplog):
    client = serve(models=root, watch_seconds=0.02)
    store = client.app.state.manager.store
    looked, fail = store.fingerprints, [True]

    def once():
        if fail:
            fail.clear()
            raise RuntimeError("a file system with a mind of its own")
        return looked()

    monkeypatch.setattr(store, "fingerprints", once)
    put(edition("1.10.0"), root / "b")
    for _ in range(500):
        if client.get("/v1/models/tiny").json()["version"] == "1.10.0":
            break
    assert not fail
    assert client.get("/v1/models/tiny").json()["version"] == "1.10.0"
    assert "trying again" in caplog.text
