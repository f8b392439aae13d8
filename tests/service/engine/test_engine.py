"""The contract of an engine on every provider at hand: right, and the same bytes in every batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.bundle import BundleError, load_bundle
from service.engine import base as engine_base
from service.engine.choice import make_engine
from service.engine.hardware import cuda_driver_problem
from service.engine.onnxruntime_engine import Engine
from service.engine.options import EngineOptions
from service.engine.padding import RowBlocks

SHIPPED = Path(engine_base.__file__).parent.parent / "bundles" / "mnist"
OPERATIONS = ("sample", "decode", "encode", "score", "evidence")
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_driver_problem()), reason=str(cuda_driver_problem())),
]
OPTIONS = {
    "onnxruntime": EngineOptions(provider="cpu"),
    "cuda": EngineOptions(provider="cuda", gpu_bucket=64),
}
BACKENDS = [
    "onnxruntime",
    pytest.param("cuda", marks=GPU),
]


@pytest.fixture(scope="module")
def make(tiny_bundle):
    """A warm engine of a backend and a bundle ("tiny" or "shipped"), made once."""
    made = {}

    def get(backend, name):
        if (backend, name) not in made:
            bundle = load_bundle(tiny_bundle if name == "tiny" else SHIPPED)
            made[backend, name] = make_engine(bundle, OPTIONS[backend])
        return made[backend, name]

    return get


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def engine(request, make, backend):
    return make(backend, request.param)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("rows", "images"), [(1, 1), (7, 3), (32, 32), (5, 9)])
def test_against_the_model_in_numpy(
    make, backend, tiny_model, model_bench, operation, rows, images
):
    engine = make(backend, "tiny")
    ragged = images if operation == "score" else None
    given = model_bench.inputs(engine.bundle, operation, rows, ragged)
    got = engine.run(operation, given)
    for name, expected in getattr(tiny_model, operation)(**given).items():
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_have_the_same_bytes_in_every_batch(engine, model_bench, operation):
    assert engine.invariant
    whole = model_bench.inputs(engine.bundle, operation, 32, seed=5)
    if "owner" in whole:
        whole["owner"] = np.arange(32)
    expected = engine.run(operation, whole)
    for start, rows in [(0, 1), (31, 1), (3, 2), (8, 3), (5, 7), (1, 15), (2, 29)]:
        piece = {name: array[start : start + rows] for name, array in whole.items()}
        if "owner" in whole:
            piece["owner"] = np.arange(rows)
        for name, output in engine.run(operation, piece).items():
            assert output.tobytes() == expected[name][start : start + rows].tobytes(), (name, rows)


def test_an_image_scores_the_same_beside_other_images(engine, model_bench):
    whole = model_bench.inputs(engine.bundle, "score", 24, 6, seed=2)
    expected = engine.run("score", whole)["log_weight"]
    for image in range(6):
        rows = np.flatnonzero(whole["owner"] == image)
        if len(rows):
            alone = {
                **{n: a[image : image + 1] for n, a in whole.items() if n in {"image", "u_image"}},
                "owner": np.zeros(len(rows), dtype=np.int64),
                "eps": whole["eps"][rows],
            }
            got = engine.run("score", alone)["log_weight"]
            assert got.tobytes() == expected[rows].tobytes()


def test_decoding_prior_eps_is_sampling_it(engine, model_bench):
    """sample(prior_eps, T = 1) = decode(z): two ways through different graphs."""
    coded = engine.run("encode", model_bench.inputs(engine.bundle, "encode", 6, seed=3))
    manifest = engine.bundle.manifest
    u = np.zeros((6, manifest.likelihood.uniforms), dtype=np.float32)
    warmth = np.ones((6, len(manifest.latent.groups)), dtype=np.float32)
    drawn = engine.run("sample", {"eps": coded["prior_eps"], "temperature": warmth, "u": u})
    decoded = engine.run("decode", {"z": coded["z"], "u": u})
    # Ten couplings there and back in float32: 1.1e-5 on some processors.
    np.testing.assert_allclose(drawn["mean"], decoded["mean"], atol=5e-5)


def test_many_threads_share_the_engine(make, backend, model_bench):
    engine = make(backend, "tiny")
    batches = [model_bench.inputs(engine.bundle, "score", 8, 3, seed=s) for s in range(40)]
    alone = [engine.run("score", batch)["log_weight"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda b: engine.run("score", b)["log_weight"], batches))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_outputs_are_the_callers_own(make, backend, model_bench):
    """A later batch does not overwrite what an earlier one gave."""
    engine = make(backend, "tiny")
    first = engine.run("encode", model_bench.inputs(engine.bundle, "encode", 4, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    engine.run("encode", model_bench.inputs(engine.bundle, "encode", 4, seed=2))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_who_computed_it(make):
    engine = make("onnxruntime", "tiny")
    assert (engine.backend, engine.provider, engine.precision) == ("onnxruntime", "cpu", "float32")


def test_canaries_that_this_machine_does_not_reproduce(tiny_bundle, backend):
    options = OPTIONS[backend]
    bundle = load_bundle(tiny_bundle)
    bundle.canaries["encode"]["out"]["z"] += np.float32(0.01)
    with pytest.raises(
        BundleError, match=r"canaries\.npz: encode on this machine's \w+: z differs"
    ):
        make_engine(bundle, options)
    bundle = load_bundle(tiny_bundle)
    bundle.canaries["sample"]["out"]["draw"][:] ^= 255
    with pytest.raises(BundleError, match=r"100\.0% of draw differs"):
        make_engine(bundle, options)


def test_a_graph_that_does_not_load(tiny, tiny_model, tmp_path, backend, monkeypatch):
    monkeypatch.setattr(tiny, "_graph", lambda *arguments: _NoGraph())
    bundle = tiny.write_tiny_bundle(tmp_path / "bad", tiny_model)
    with pytest.raises(BundleError, match=r"\.onnx: ONNX Runtime .* cannot load it"):
        make_engine(bundle, OPTIONS[backend])


class _NoGraph:
    def SerializeToString(self):
        return b"not a graph"


def test_closing_frees_and_the_next_run_loads_again(tiny_bundle, backend, model_bench):
    engine = make_engine(load_bundle(tiny_bundle), OPTIONS[backend])
    given = model_bench.inputs(engine.bundle, "encode", 3)
    before = engine.run("encode", given)["z"]
    engine.close()
    assert np.array_equal(engine.run("encode", given)["z"], before)


def test_no_padding_helps_a_backend_that_is_not_repeatable(tiny_bundle, monkeypatch, caplog):
    engine = Engine(load_bundle(tiny_bundle), EngineOptions(provider="cpu"))
    monkeypatch.setattr(engine_base, "invariant", lambda *arguments: False)
    engine.warm()
    assert not engine.invariant
    assert engine.padding == RowBlocks(16)
    assert "depend on their batch" in caplog.text
