"""Bundles: what is whole loads, the graphs are those of the contract, writing is all or nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from service.bundle import (
    BundleError,
    graph_contract,
    load_bundle,
    manifest_from_json,
    manifest_to_json,
    write_bundle,
)
from service.bundle import writer as bundle_writer


def test_a_whole_bundle(tiny_bundle, tiny_model):
    bundle = load_bundle(tiny_bundle)
    raw = (tiny_bundle / "manifest.json").read_bytes()
    assert bundle.hash == hashlib.sha256(raw).hexdigest()
    assert bundle.manifest.image.shape == (1, 4, 4)
    assert bundle.manifest.row_block == 16  # not stated: the block that suits every graph
    assert set(bundle.reference.scores) == {1, 16, 64}
    assert np.array_equal(bundle.reference.scores[16], tiny_model.calibration(16))
    assert set(bundle.canaries["score"]["out"]) == {"log_weight", "log_px_z", "kl"}
    assert manifest_from_json(manifest_to_json(bundle.manifest)) == bundle.manifest
    assert load_bundle(str(tiny_bundle)).hash == bundle.hash


def test_graph_contract_is_the_table(tiny):
    got = {
        operation: (
            " ".join(f"{t.name}:{t.dtype}{list(t.shape)}" for t in graph.inputs),
            " ".join(f"{t.name}:{t.dtype}{list(t.shape)}" for t in graph.outputs),
        )
        for operation, graph in graph_contract(
            tiny.IMAGE, tiny.LATENT, tiny.LIKELIHOOD, tiny.STATISTICS
        ).items()
    }
    pixels = "mean:float32['N', 1, 4, 4] draw:uint8['N', 1, 4, 4]"
    assert got == {
        "sample": (
            "eps:float32['N', 3] temperature:float32['N', 1] u:float32['N', 16]",
            pixels,
        ),
        "decode": ("z:float32['N', 3] u:float32['N', 16]", pixels),
        "encode": (
            "image:uint8['N', 1, 4, 4] eps:float32['N', 3] u_image:float32['N', 16]",
            "z:float32['N', 3] prior_eps:float32['N', 3]",
        ),
        "score": (
            (
                "image:uint8['N', 1, 4, 4] owner:int64['R'] eps:float32['R', 3] "
                "u_image:float32['N', 16]"
            ),
            "log_weight:float32['R'] log_px_z:float32['R'] kl:float32['R', 1]",
        ),
        "evidence": (
            (
                "image:uint8['N', 1, 4, 4] owner:int64['R'] eps:float32['R', 3] "
                "u_image:float32['N', 16]"
            ),
            (
                "log_weight:float32['R'] kl:float32['R', 1] "
                "residual:float32['N', 4, 4] statistics:float32['N', 2]"
            ),
        ),
    }


def test_writing_replaces_a_bundle_and_leaves_nothing_else(tiny, tmp_path):
    path = tmp_path / "deep" / "bundle"
    first = tiny.write_tiny_bundle(path)
    second = tiny.write_tiny_bundle(path, version="2.0.0")
    assert first.hash != second.hash == load_bundle(path).hash
    assert second.path == path
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def test_replacing_where_directories_cannot_be_swapped(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer, "_exchange", lambda one, other: False)
    tiny.write_tiny_bundle(tmp_path / "bundle")
    second = tiny.write_tiny_bundle(tmp_path / "bundle", version="2.0.0")
    assert load_bundle(tmp_path / "bundle").hash == second.hash
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_not_replaced(tiny, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    with pytest.raises(BundleError, match="is no bundle"):
        tiny.write_tiny_bundle(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "dear"


def contents(tiny_bundle):
    return {f.name: f.read_bytes() for f in tiny_bundle.iterdir() if f.name != "manifest.json"}


def test_a_failing_check_publishes_nothing(tiny, tiny_bundle, tmp_path):
    def check(bundle):
        assert bundle.manifest.name == "tiny"
        raise RuntimeError("disagrees with torch")

    with pytest.raises(RuntimeError, match="disagrees"):
        write_bundle(tmp_path / "new", tiny.tiny_manifest(), contents(tiny_bundle), check)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../escape", "a/b", "manifest.json", ".."])
def test_contents_with_other_names_than_plain_ones(tiny, tiny_bundle, tmp_path, name):
    bad = {**contents(tiny_bundle), name: b"x"}
    with pytest.raises(BundleError, match="plain name"):
        write_bundle(tmp_path / "in" / "new", tiny.tiny_manifest(), bad)
    assert not list((tmp_path / "in").iterdir())


def test_an_invalid_manifest_is_not_published(tiny, tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match="kl_groups"):
        write_bundle(tmp_path / "new", tiny.tiny_manifest(kl_groups=[]), contents(tiny_bundle))
    assert not list(tmp_path.iterdir())


def test_the_contract_needs_pydantic_and_numpy_alone():
    code = (
        "import sys, service.bundle;"
        "bad = {'fastapi', 'onnxruntime', 'torch', 'PIL'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
