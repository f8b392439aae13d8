"""The engine against the tiny model in NumPy, and rows against themselves in other batches."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import engine as engine_module
from service.batch import check, pad, trim
from service.bundle import BundleError, load_bundle
from service.engine import Engine
from service.errors import (
    DeviceFault,
    EngineFailure,
    InvalidInput,
    PayloadTooLarge,
    ProviderUnavailable,
    WrongDtype,
    WrongShape,
)
from service.hardware import available_cores
from service.padding import Buckets, RowBlocks
from service.probe import invariant

SHIPPED = Path(engine_module.__file__).parent / "bundles" / "mnist"
OPERATIONS = ("sample", "decode", "encode", "score")


@pytest.fixture(scope="module")
def engine(tiny_bundle):
    made = Engine(load_bundle(tiny_bundle), provider="cpu")
    made.warm()
    return made


def inputs(bundle, operation, rows, images=None, seed=0):
    """Random inputs; in `score`, `rows` rows of `images` images in any order."""
    rng = np.random.default_rng(seed)
    images = images or rows
    made = {}
    for tensor in bundle.manifest.graphs[operation].inputs:
        shape = (images if tensor.name == "image" else rows, *tensor.shape[1:])
        if tensor.dtype == "uint8":
            made[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "int64":
            made[tensor.name] = rng.integers(0, images, shape)
        elif tensor.name in {"u", "temperature"}:
            made[tensor.name] = rng.random(shape, dtype=np.float32)
        else:
            made[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return made


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("rows", "images"), [(1, 1), (7, 3), (32, 32), (5, 9)])
def test_against_the_model_in_numpy(engine, tiny_model, operation, rows, images):
    given_ = inputs(engine.bundle, operation, rows, images if operation == "score" else None)
    got = engine.run(operation, given_)
    for name, expected in getattr(tiny_model, operation)(**given_).items():
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def warm_engine(request, tiny_bundle):
    path = tiny_bundle if request.param == "tiny" else SHIPPED
    made = Engine(load_bundle(path), provider="cpu")
    made.warm()
    return made


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_have_the_same_bytes_in_every_batch(warm_engine, operation):
    assert warm_engine.invariant
    whole = inputs(warm_engine.bundle, operation, 32, seed=5)
    if operation == "score":
        whole["owner"] = np.arange(32)
    expected = warm_engine.run(operation, whole)
    for start, rows in [(0, 1), (31, 1), (3, 2), (8, 3), (5, 7), (1, 15), (2, 29)]:
        piece = {name: array[start : start + rows] for name, array in whole.items()}
        if operation == "score":
            piece["owner"] = np.arange(rows)
        for name, output in warm_engine.run(operation, piece).items():
            assert output.tobytes() == expected[name][start : start + rows].tobytes(), (name, rows)


def test_an_image_scores_the_same_beside_other_images(warm_engine):
    whole = inputs(warm_engine.bundle, "score", 24, 6, seed=2)
    expected = warm_engine.run("score", whole)["log_weight"]
    for image in range(6):
        rows = np.flatnonzero(whole["owner"] == image)
        if len(rows):
            alone = {
                "image": whole["image"][image : image + 1],
                "owner": np.zeros(len(rows), dtype=np.int64),
                "eps": whole["eps"][rows],
            }
            got = warm_engine.run("score", alone)["log_weight"]
            assert got.tobytes() == expected[rows].tobytes()


def test_decoding_prior_eps_is_sampling_it(warm_engine):
    """sample(prior_eps, T = 1) = decode(z): two ways through different graphs."""
    images = inputs(warm_engine.bundle, "encode", 6, seed=3)
    coded = warm_engine.run("encode", images)
    manifest = warm_engine.bundle.manifest
    u = np.zeros((6, manifest.likelihood.uniforms), dtype=np.float32)
    warmth = np.ones((6, len(manifest.latent.groups)), dtype=np.float32)
    drawn = warm_engine.run("sample", {"eps": coded["prior_eps"], "temperature": warmth, "u": u})
    decoded = warm_engine.run("decode", {"z": coded["z"], "u": u})
    np.testing.assert_allclose(drawn["mean"], decoded["mean"], atol=1e-5)


def test_many_threads_share_the_engine(engine):
    batches = [inputs(engine.bundle, "score", 8, 3, seed=s) for s in range(40)]
    alone = [engine.run("score", batch)["log_weight"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda b: engine.run("score", b)["log_weight"], batches))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def spoil(name, value):
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (spoil("eps", np.zeros((4, 2), np.float32)), WrongShape, "eps must have the shape"),
        (spoil("eps", np.zeros((3, 3), np.float32)), WrongShape, "eps must have the shape"),
        (spoil("eps", np.float32(1.0)), WrongShape, "eps"),
        (spoil("eps", np.zeros((4, 3))), WrongDtype, "eps must be float32"),
        (spoil("image", np.zeros((0, 1, 4, 4), np.uint8)), WrongShape, "image"),
        (spoil("owner", np.array([0, 1, 2, 4])), InvalidInput, "owner must point"),
        (spoil("owner", np.array([0, 1, 2, -1])), InvalidInput, "owner must point"),
        (spoil("extra", np.zeros(4)), InvalidInput, "inputs must be image, owner, eps"),
        (lambda arrays: arrays.pop("owner"), InvalidInput, "inputs must be image, owner, eps"),
    ],
)
def test_inputs_that_do_not_fit(engine, change, error, words):
    arrays = inputs(engine.bundle, "score", 4)
    change(arrays)
    with pytest.raises(error, match=words):
        engine.run("score", arrays)


def test_batches_above_the_limit(engine):
    with pytest.raises(PayloadTooLarge, match="at most 32 rows"):
        engine.run("decode", inputs(engine.bundle, "decode", 33))


def test_what_the_provider_is_and_what_it_is_called(engine):
    assert (engine.provider, engine.backend, engine.precision) == ("cpu", "onnxruntime", "float32")


def test_demanding_cuda_without_it_names_the_remedy(tiny_bundle, monkeypatch):
    monkeypatch.setattr(engine_module, "_cuda_problem", lambda: "there is no driver")
    with pytest.raises(ProviderUnavailable, match=r"there is no driver.*iafvae\[cuda\]"):
        Engine(load_bundle(tiny_bundle), provider="cuda")


def test_a_silent_fallback_is_noticed(tiny_bundle, monkeypatch, caplog):
    """ONNX Runtime names CUDA as available and then computes on the CPU: the session tells."""
    monkeypatch.setattr(engine_module, "_cuda_problem", lambda: None)
    create = Engine._create
    monkeypatch.setattr(Engine, "_create", lambda self, op, provider: create(self, op, "cpu"))
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(ProviderUnavailable, match="fell back to the CPU"):
        Engine(bundle, provider="cuda")
    with caplog.at_level(logging.INFO, logger="service.engine"):
        assert Engine(bundle, provider="auto").provider == "cpu"
    assert len(caplog.records) == 1


def test_canaries_that_this_machine_does_not_reproduce(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    bundle.canaries["encode"]["out"]["z"] += np.float32(0.01)
    with pytest.raises(
        BundleError, match=r"canaries\.npz: encode on this machine's cpu: z differs"
    ):
        Engine(bundle, provider="cpu").warm()
    bundle = load_bundle(tiny_bundle)
    bundle.canaries["sample"]["out"]["draw"][:] ^= 255
    with pytest.raises(BundleError, match=r"100\.0% of draw differs"):
        Engine(bundle, provider="cpu").warm()


def test_a_graph_that_does_not_load(tiny_bundle, tmp_path):
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bad"))
    (path / "score.onnx").write_bytes(b"not a graph")
    bundle = load_bundle(tiny_bundle)
    bad = Engine(type(bundle)(path, bundle.manifest, "", {}, bundle.canaries), provider="cpu")
    with pytest.raises(BundleError, match=r"score\.onnx: ONNX Runtime .* cannot load it"):
        bad.run("score", inputs(bundle, "score", 2))


class Session:
    def __init__(self, error):
        self.error = error

    def run(self, names, feed):
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDNN failure 4"), DeviceFault),
        (RuntimeError("CUDA error 700: an illegal memory access"), DeviceFault),
        (RuntimeError("Failed to allocate memory for requested buffer"), DeviceFault),
        (MemoryError(), DeviceFault),
        (RuntimeError("indices element out of data bounds"), EngineFailure),
    ],
)
def test_faults_of_the_device_are_told_from_failures_of_a_run(tiny_bundle, error, expected):
    engine = Engine(load_bundle(tiny_bundle), provider="cpu")
    engine._sessions[("score",)] = Session(error)
    with pytest.raises(expected, match="score"):
        engine.run("score", inputs(engine.bundle, "score", 2))


def test_padding_grows_until_rows_are_independent(tiny_bundle, monkeypatch):
    """A backend whose last row of an odd batch comes out different needs blocks of two."""
    fields = json.loads((tiny_bundle / "manifest.json").read_text())
    assert "row_block" not in fields
    engine = Engine(load_bundle(tiny_bundle), provider="cpu")
    monkeypatch.setattr(
        engine, "_paddings", lambda: [RowBlocks(block) for block in (1, 2, 4, 8, 16)]
    )
    run = engine._session

    class Odd:
        def __init__(self, session):
            self.session = session

        def run(self, names, feed):
            outputs = self.session.run(names, feed)
            if len(next(iter(feed.values()))) % 2:
                outputs[0][-1] += 1
            return outputs

    monkeypatch.setattr(engine, "_session", lambda op, shape: Odd(run(op, shape)))
    padding, found = engine._choose_padding()
    assert (padding, found) == (RowBlocks(2), True)


def test_no_padding_helps_a_backend_that_is_not_repeatable(tiny_bundle, monkeypatch, caplog):
    engine = Engine(load_bundle(tiny_bundle), provider="cpu")
    monkeypatch.setattr(engine_module, "invariant", lambda *arguments: False)
    engine.warm()
    assert not engine.invariant
    assert engine.padding == RowBlocks(16)
    assert "depend on their batch" in caplog.text


def test_the_probe_sees_a_difference_at_one_place():
    """A planted violation: row 17 of a batch is off unless it stands alone."""
    from service.specs import GraphSpec, TensorSpec

    x = TensorSpec(name="eps", dtype="float32", shape=("N", 2))
    graph = {"f": GraphSpec(file="f.onnx", inputs=(x,), outputs=(x,))}

    def sound(operation, arrays):
        return {"eps": arrays["eps"] * 2}

    def flawed(operation, arrays):
        out = arrays["eps"] * 2
        out[17:18] += np.float32(1e-6)
        return {"eps": out}

    assert invariant(graph, sound, 32)
    assert not invariant(graph, flawed, 32)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.sampled_from([RowBlocks(1), RowBlocks(16), Buckets((16, 100))]))
def test_paddings_hold_their_rows(rows, padding):
    assert padding.size(rows) >= rows
    assert padding.size(padding.size(rows)) == padding.size(rows)


def test_pad_and_trim_change_no_row(tiny_bundle):
    graph = load_bundle(tiny_bundle).manifest.graphs["score"]
    arrays = inputs(load_bundle(tiny_bundle), "score", 5, 3)
    assert check(graph, arrays, 8) == {"N": 3, "R": 5}
    padded = pad(graph, arrays, {"N": 4, "R": 8})
    assert padded["owner"].tolist() == [*arrays["owner"].tolist(), 0, 0, 0]
    outputs = [np.arange(8.0), np.arange(8.0), np.zeros((8, 1))]
    assert trim(graph, outputs, {"N": 3, "R": 5})["log_weight"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "rubbish"}, None),
        ({}, None),
    ],
)
def test_cores_respect_the_container(tmp_path, monkeypatch, files, limit):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (limit or 6)
