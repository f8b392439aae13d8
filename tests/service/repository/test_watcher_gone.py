"""What goes from the directory is unloaded, but not the default model, nor where all has gone."""

from __future__ import annotations

import logging
import shutil

import pytest


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


def test_a_bundle_for_which_there_is_no_room_is_loaded_when_there_is(
    sites, serve, root, edition, put
):
    watched = sites.Watched(serve(models=root, max_models=1))
    put(edition("1.10.0"), root / "b")
    watched.looks(3)
    assert "IAFVAE_MAX_MODELS is 1" in watched.registry.failed["b"]
    assert watched.client.metric("iafvae_model_load_failures_total", directory="b") == 0
    shutil.rmtree(root / "a")
    watched.looks(4)
    assert watched.loaded == {"b": "1.10.0"}, "the place of what has gone is free"
    assert watched.registry.failed == {}


def test_one_bundle_alone_is_followed(sites, serve, root, edition, put):
    watched = sites.Watched(serve(models=root / "a"))
    put(edition("1.10.0"), root / "a")
    watched.looks(2)
    assert watched.loaded == {"a": "1.10.0"}
    shutil.rmtree(root / "a")
    watched.looks(3)
    assert watched.loaded == {"a": "1.10.0"}
