"""What the service will not load or unload: a refusal says why and changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from service.bundle import BundleError, load_bundle
from service.engine.onnxruntime_engine import Engine
from service.errors import BundleRefused, Conflict, ModelLimit, UnknownBundle, UnknownModel


def spoil(bundle: Path) -> Path:
    """Change a weight, and tell the manifest, so that only the computation can notice."""
    data = bytearray((bundle / "weights.bin").read_bytes())
    weights = np.frombuffer(data, np.float32, 16, offset=8192)  # of W, the decoder
    weights += np.float32(0.5)
    (bundle / "weights.bin").write_bytes(data)
    rehash(bundle, "weights.bin")
    return bundle


def rehash(bundle: Path, file: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (bundle / file).read_bytes()
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["files"][file] = record
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# ------------------------------------------------------------------ refusals


def test_a_bundle_that_fails_its_canaries_is_refused_and_the_old_one_stays(
    site, root, edition, put
):
    old = load_bundle(root / "a").hash
    put(edition("1.9.0", build="again"), root / "a")
    spoil(root / "a")
    load_bundle(root / "a")  # whole as far as files go
    with pytest.raises(BundleRefused, match=r"canaries\.npz: \w+ on this machine's cpu: .*differs"):
        site.load("a")
    answer = site.client.post("/v1/sample", json={"seed": 1})
    assert answer.headers["x-iafvae-bundle"] == old
    assert "differs from the canary" in site.failed()["a"]
    assert str(root) not in site.failed()["a"], "callers need not know where it lies"
    assert site.metric("iafvae_model_load_failures_total", directory="a") == 1
    assert site.metric("iafvae_models", state="failed") == 1
    assert site.client.get("/readyz").status_code == 200
    put(edition("1.9.0", build="again"), root / "a")
    assert site.load("a").change == "swapped"
    assert site.failed() == {}


OUTPUTS = [
    *[("sample", o) for o in ("mean", "draw")],
    *[("decode", o) for o in ("mean", "draw")],
    *[("encode", o) for o in ("z", "prior_eps")],
    *[("score", o) for o in ("log_weight", "log_px_z", "kl")],
    *[("evidence", o) for o in ("log_weight", "kl", "residual", "statistics")],
]


@pytest.mark.parametrize(("operation", "output"), OUTPUTS)
def test_every_output_of_every_operation_is_compared(tiny_bundle, operation, output):
    bundle = load_bundle(tiny_bundle)
    assert {(op, name) for op, c in bundle.canaries.items() for name in c["out"]} == set(OUTPUTS)
    expected, spec = bundle.canaries[operation]["out"][output], bundle.manifest.canaries
    if expected.dtype == np.uint8:
        expected[:] ^= 255
        Engine(load_bundle(tiny_bundle), provider="cpu").warm()
    else:
        exact = expected.copy()
        expected += np.float32(0.5) * (spec.atol + spec.rtol * np.abs(exact)).astype(np.float32)
        Engine(bundle, provider="cpu").warm()  # within the tolerances that the manifest states
        expected[:] = exact + np.float32(2) * (spec.atol + spec.rtol * np.abs(exact))
    with pytest.raises(BundleError, match=f"{operation} on this machine's cpu: .*{output}"):
        Engine(bundle, provider="cpu").warm()


def test_only_names_that_the_directory_lists_are_bundles(site, root):
    shutil.copytree(root / "a", root / ".hidden")
    shutil.copytree(root / "a", root / "b.tmp")
    (root / "empty").mkdir()
    names = ["..", ".", "", "../models/a", "a/", "a/../a", "./a", str(root / "a"), "/etc", "a\x00"]
    for name in [*names, ".hidden", "b.tmp", "empty", "A", "%2e%2e", "a" * 5000]:
        with pytest.raises(UnknownBundle, match=r"there are a$"):
            site.load(name)
    assert site.versions() == ["1.9.0"]


def test_links_are_followed_inside_of_the_directory_alone(site, root, edition, put, tmp_path):
    put(edition("1.10.0"), tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRefused, match=r"^bundle b: is a link that leaves the models' dir"):
        site.load("b")
    put(edition("2.0.0"), root / "releases-2")
    (root / "current").symlink_to("releases-2")
    assert site.load("current").version == "2.0.0"


def test_a_version_that_is_there_already_is_refused(site, root):
    shutil.copytree(root / "a", root / "b")
    with pytest.raises(Conflict, match=r"b and a are both named 'tiny', version 1\.9\.0"):
        site.load("b")
    assert [m.directory for m in site.registry.models] == ["a"]
    assert "b" in site.failed()


def test_no_more_models_are_loaded_than_may_be(sites, serve, root, edition, put):
    site = sites.Site(serve(models=root, max_models=1))
    put(edition("1.10.0"), root / "b")
    with pytest.raises(ModelLimit, match="IAFVAE_MAX_MODELS is 1"):
        site.load("b")
    assert site.run(site.manager.reload("tiny")).change == "swapped", "it takes no further place"


def test_replaced_models_that_still_answer_count_as_well(sites, serve, root):
    site = sites.Site(serve(models=root, max_models=1))

    async def main():
        release = asyncio.Event()

        async def request():
            with site.registry.find():
                await release.wait()

        held = asyncio.create_task(request())
        await asyncio.sleep(0)
        await site.manager.reload("tiny")
        with pytest.raises(ModelLimit, match="still answer"):
            await site.manager.reload("tiny")
        release.set()
        await held
        await site.registry.wait_retired()
        assert (await site.manager.reload("tiny")).change == "swapped"

    site.run(main())


def test_a_default_whose_directory_is_gone_does_not_stop_the_swaps_of_others(
    sites, serve, root, edition, put
):
    put(edition("1.9.0", name="other"), root / "b")
    site = sites.Site(serve(models=root, max_models=2, default_model="tiny"))
    shutil.rmtree(root / "a")
    put(edition("1.9.0", name="third"), root / "c")
    assert site.load("c").change == "loaded", "what has no directory does not count"
    put(edition("2.0.0", name="other"), root / "b")
    assert site.load("b").change == "swapped"


def test_a_default_may_be_named_with_its_version(site, root, edition, put):
    put(edition("1.10.0"), root / "b")
    site.load("b")
    assert site.answering() == "1.10.0"
    assert site.manager.choose("tiny@1.9.0").version == "1.9.0"
    assert site.answering() == "1.9.0"
    with pytest.raises(UnknownModel):
        site.manager.choose("tiny@7")
    assert site.answering() == "1.9.0"


def test_the_default_and_a_pinned_version_stay(sites, serve, root, edition, put):
    site = sites.Site(serve(models=root, default_model="tiny@1.9.0"))
    put(edition("1.10.0"), root / "b")
    site.load("b")
    assert site.answering() == "1.9.0"
    put(edition("2.0.0"), root / "a")
    with pytest.raises(Conflict, match=r"tiny@1\.9\.0 is pinned"):
        site.load("a")
    assert site.versions() == ["1.10.0", "1.9.0"]
    site.manager.pin("tiny", None)
    assert site.load("a").change == "swapped"
    assert site.answering() == "2.0.0"
    with pytest.raises(Conflict, match=r"say which, as in tiny@2\.0\.0"):
        site.run(site.manager.unload("tiny"))
    assert site.run(site.manager.unload("tiny@2.0.0")).change == "unloaded"
    with pytest.raises(Conflict, match="default model"):
        site.run(site.manager.unload("tiny@1.10.0"))
    with pytest.raises(UnknownModel):
        site.run(site.manager.unload("tiny@7"))


def test_whatever_goes_wrong_while_a_bundle_is_loaded_changes_nothing(site, monkeypatch):
    def fault(_path):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(site.manager.store, "open", fault)
    with pytest.raises(BundleRefused, match="RuntimeError: the disk is on fire"):
        site.run(site.manager.reload("tiny"))
    assert site.answering() == "1.9.0"
    assert site.failed() == {"a": "RuntimeError: the disk is on fire"}


# ------------------------------------------------------------------ the start


def test_the_default_may_name_its_version(sites, serve, root, edition, put):
    put(edition("1.10.0"), root / "b")
    site = sites.Site(serve(models=root, default_model="tiny@1.9.0"))
    assert site.answering() == "1.9.0"
    described = site.client.get("/v1/models/tiny").json()
    assert described["pinned"]
    assert described["versions"] == ["1.10.0", "1.9.0"]
    with pytest.raises(BundleError, match=r"IAFVAE_DEFAULT_MODEL='tiny@7' .*\(tiny@1\.10\.0, "):
        serve(models=root, default_model="tiny@7")


def test_more_bundles_than_may_be_loaded_are_refused_at_the_start(serve, root, edition, put):
    put(edition("1.10.0"), root / "b")
    with pytest.raises(BundleError, match="holds 2 bundles, and IAFVAE_MAX_MODELS is 1"):
        serve(models=root, max_models=1)


@pytest.mark.parametrize("watch_seconds", [0.0, 60.0])
def test_a_bad_bundle_ends_the_start_only_where_there_is_no_good_one(
    sites, serve, root, edition, put, watch_seconds
):
    spoil(put(edition("1.10.0"), root / "b"))
    site = sites.Site(serve(models=root, watch_seconds=watch_seconds))
    assert site.versions() == ["1.9.0"]
    assert "differs from the canary" in site.failed()["b"]
    shutil.rmtree(root / "a")
    with pytest.raises(BundleError, match="differs from the canary"):
        serve(models=root, watch_seconds=watch_seconds)


def test_one_bundle_alone_is_known_by_its_directory(sites, serve, root, edition, put):
    site = sites.Site(serve(models=root / "a"))
    put(edition("1.10.0"), root / "a")
    assert site.load("a").change == "swapped"
    with pytest.raises(UnknownBundle, match=r"there are a$"):
        site.load("models")
