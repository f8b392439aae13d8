"""What else lies in a directory of models: it is named and left alone, and nothing else stops."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import threading

import pytest

from service.bundle import BundleError
from service.bundle.reader import MAX_MANIFEST_BYTES
from service.errors import BundleRefused
from service.repository import watcher

BAD_NAME = os.fsdecode(b"caf\xe9")


def litter(root, bundle):
    """A dangling link, a loop, a name that is no UTF-8, and what is no bundle at all."""
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    shutil.copytree(bundle, root / BAD_NAME)
    (root / "README.md").write_text("notes")
    (root / "empty").mkdir()
    (root / "odd").mkdir()
    (root / "odd" / "manifest.json").mkdir()
    return {"dangling", "loop", "caf\\xe9"}


def test_a_file_in_a_bundle_whose_name_is_no_utf8(sites, serve, root, edition):
    shutil.copytree(edition("1.10.0"), root / "more")
    (root / "more" / BAD_NAME).touch()
    site = sites.Site(serve(models=root))
    assert "caf\\udce9: not listed" in site.failed()["more"]
    assert site.client.get("/v1/models").status_code == 200


def test_at_the_start(sites, serve, root, edition, caplog):
    strange = litter(root, edition("1.10.0"))
    with caplog.at_level(logging.WARNING, "iafvae"):
        site = sites.Site(serve(models=root))
    assert site.versions() == ["1.9.0"]
    assert site.failed().keys() == strange
    assert "no UTF-8" in site.failed()["caf\\xe9"]
    for name in strange:
        assert name in caplog.text
    assert site.metric("iafvae_models", state="failed") == len(strange)
    assert site.client.get("/metrics").status_code == 200
    assert site.client.get("/readyz").status_code == 200


def test_what_file_systems_put_there_is_named_and_does_not_count_as_failed(sites, serve, root):
    """On every ext4 volume; not readable for who serves (here: root, hence a link)."""
    (root / "lost+found").symlink_to("lost+found")
    site = sites.Site(serve(models=root))
    assert "lost+found" in site.failed()
    assert site.metric("iafvae_models", state="failed") == 0
    assert site.metric("iafvae_models", state="foreign") == 1


def test_while_it_is_watched(watched, root, edition, put, caplog):
    strange = litter(root, edition("1.10.0"))
    with caplog.at_level(logging.WARNING, "iafvae"):
        watched.looks(4)
    assert watched.registry.failed.keys() == strange
    assert len([r for r in caplog.records if "dangling" in r.getMessage()]) == 1
    put(edition("2.0.0"), root / "good")
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "good": "2.0.0"}
    assert watched.client.get("/metrics").status_code == 200
    assert watched.client.get("/v1/models").status_code == 200
    (root / "dangling").unlink()
    (root / "loop").unlink()
    shutil.rmtree(root / BAD_NAME)
    watched.looks(2)
    assert watched.registry.failed == {}


def test_what_comes_back_as_it_was_is_not_called_failed_any_longer(
    watched, root, edition, put, caplog
):
    put(edition("2.0.0"), root / ".release")
    (root / "b").symlink_to(".release")
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "2.0.0"}
    runtime = watched.registry.in_directory("b").runtime
    for _ in range(2):
        (root / ".release").rename(root / ".away")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "iafvae"):
            watched.looks(3)
        assert watched.registry.failed == {"b": "is a link to nothing"}
        assert caplog.text.count("is a link to nothing") == 1, "at each outage, and once"
        (root / ".away").rename(root / ".release")
        watched.looks(2)
        assert watched.registry.failed == {}
        assert watched.registry.in_directory("b").runtime is runtime


def test_an_error_of_one_does_not_keep_the_others(watched, root, edition, put, monkeypatch):
    put(edition("2.0.0"), root / "z")
    put(edition("1.10.0"), root / "b")
    look = watched.manager.store.look

    def fails(directory):
        if directory == "b":
            raise OSError(5, "Input/output error")
        return look(directory)

    monkeypatch.setattr(watched.manager.store, "look", fails)
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "z": "2.0.0"}
    assert watched.registry.failed == {"b": "Input/output error"}


@pytest.mark.parametrize("target", ["nowhere", "loop", "/proc/1/root/x/y"])
def test_a_link_to_nothing_within_a_bundle_is_said_while_it_is_watched(
    watched, root, edition, put, target
):
    bundle = put(edition("2.0.0"), root / "b")
    (bundle / "loop").symlink_to(target)
    watched.looks(2)
    assert "loop: not listed in the manifest" in watched.registry.failed["b"]
    (bundle / "loop").unlink()
    watched.looks(2)
    assert watched.loaded == {"a": "1.9.0", "b": "2.0.0"}
    assert watched.registry.failed == {}


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_what_another_user_owns(tmp_path):
    """In a process of somebody else: root may read everything."""
    for name in ("good", "listless", "lost+found", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    for name in ("lost+found", "theirs"):
        (tmp_path / name).chmod(0o700)
    (tmp_path / "listless").chmod(0o711)
    program = [sys.executable, "-c", BECOME, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["good", "|", "listless", "lost+found", "theirs"], done.stderr
    assert done.returncode == 0, done.stderr


BECOME = """
import os, sys
from pathlib import Path
from service.bundle import BundleError
from service.repository.store import _survey, bundle_paths
os.chdir(sys.argv[1])
os.chmod(".", 0o755)
os.setuid(12345)
found, strange = _survey(Path("."))
print(*[p.name for p in found], "|", *sorted(strange))
try:
    bundle_paths(Path("theirs").absolute())
except BundleError as error:
    assert "theirs cannot be listed (Permission denied)" in str(error), error
else:
    raise AssertionError
"""


# ------------------------------------------------------------------ bundles that do harm


def test_a_bundle_that_never_ends_to_load(sites, serve, root, edition, put, monkeypatch):
    site = sites.Site(serve(models=root))
    put(edition("1.10.0"), root / "b")
    opened, release = site.manager.store.open, threading.Event()
    patient = site.manager._settings
    site.manager._settings = patient.model_copy(update={"load_seconds": 0.2})
    monkeypatch.setattr(site.manager.store, "open", lambda _: release.wait(60))
    with pytest.raises(BundleRefused, match=r"IAFVAE_LOAD_SECONDS=0\.2"):
        site.load("b")
    monkeypatch.setattr(site.manager.store, "open", opened)
    site.manager._settings = patient
    assert site.load("b").change == "loaded", "nothing waits for the first try"
    release.set()


def test_one_that_never_ends_does_not_stop_the_start(sites, serve, root, edition, put, monkeypatch):
    from service.repository.store import ModelStore

    put(edition("1.10.0"), root / "b")
    opened, release = ModelStore.open, threading.Event()

    def hangs(store, path):
        return opened(store, path) if path.name == "a" else release.wait(60)

    monkeypatch.setattr(ModelStore, "open", hangs)
    site = sites.Site(serve(models=root, load_seconds=5.0))
    release.set()
    assert site.versions() == ["1.9.0"]
    assert "IAFVAE_LOAD_SECONDS" in site.failed()["b"]


# ------------------------------------------------------------------ a disk that does not answer


@pytest.fixture
def hung():
    """A function that does not return before the test ends; `entered` when it was called."""

    def wait(*_):
        wait.entered.set()
        wait.release.wait(20)
        wait.returned.set()
        raise OSError(5, "it hung")

    wait.entered, wait.release, wait.returned = (threading.Event() for _ in range(3))
    yield wait
    wait.release.set()


@pytest.mark.parametrize("begin", ["look", "survey"])
def test_the_end_does_not_wait_for_a_disk(serve, root, hung, monkeypatch, begin):
    client = serve(models=root, watch_seconds=0.02 if begin == "survey" else 0.0)
    manager = client.app.state.manager
    monkeypatch.setattr(manager.store, begin, hung)
    if begin == "look":
        asyncio.run_coroutine_threadsafe(manager.load("a"), client.transport.loop)
    assert hung.entered.wait(60)
    client.close()
    assert not hung.returned.is_set()


def test_models_are_changed_again_when_a_disk_did_not_answer(site, hung, monkeypatch):
    patient = site.manager._settings
    site.manager._settings = patient.model_copy(update={"load_seconds": 0.2})
    with monkeypatch.context() as patched:
        patched.setattr(site.manager.store, "look", hung)
        with pytest.raises(BundleRefused, match="does the disk or network that it lies on answer"):
            site.load("a")
    site.manager._settings = patient
    assert site.load("a").change == "unchanged"


def test_a_listing_that_takes_long_is_said_once(watched, hung, monkeypatch, caplog):
    monkeypatch.setattr(watcher, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(watched.manager.store, "survey", hung)
    threading.Timer(0.3, hung.release.set).start()
    watched.looks()
    assert [r.message for r in caplog.records if "not listed yet" in r.message]
    assert watched.loaded == {"a": "1.9.0"}


def deep(manifest):
    manifest["name"] = value = []
    for _ in range(300):
        value.append(value := [])


def surrogate(manifest):
    manifest["name"] = "\ud800"


def surrogate_key(manifest):
    manifest["\udcff"] = 1


@pytest.mark.parametrize("spoil", [deep, surrogate, surrogate_key])
def test_manifests_that_no_answer_could_hold(site, root, edition, put, spoil):
    bundle = put(edition("1.10.0"), root / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    spoil(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleRefused, match=r"manifest\.json"):
        site.load("b")
    for path in ("/v1/models", "/metrics", "/v2"):
        assert site.client.get(path).status_code == 200


def test_a_manifest_of_gigabytes_is_not_read(site, root, edition, put):
    bundle = put(edition("1.10.0"), root / "b")
    os.truncate(bundle / "manifest.json", 4 << 30)  # sparse
    with pytest.raises(BundleRefused, match=f"larger than {MAX_MANIFEST_BYTES}"):
        site.load("b")
    found = site.manager.store.look("b")
    assert found.hash is None


def test_all_of_it_bad_is_said_at_the_start(serve, root):
    shutil.rmtree(root / "a")
    (root / "dangling").symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"holds none .*dangling is a link to nothing"):
        serve(models=root)
