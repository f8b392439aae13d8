"""The ways of a GPU, gone on a CPU: providers and what they are told, fixed shapes, bound
buffers.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from service.bundle import load_bundle
from service.engine import onnxruntime_engine as engine_module
from service.engine.onnxruntime_engine import Engine
from service.engine.padding import Buckets
from service.errors import ProviderUnavailable

SHIPPED = Path(engine_module.__file__).parent.parent / "bundles" / "mnist"


def test_demanding_a_gpu_without_it_names_the_remedy(tiny_bundle, monkeypatch):
    monkeypatch.setattr(engine_module, "gpu_problem", lambda: "there is no driver")
    with pytest.raises(ProviderUnavailable, match=r"there is no driver.*\.\[cuda\]"):
        Engine(load_bundle(tiny_bundle), provider="cuda")


def test_a_silent_fallback_is_noticed(tiny_bundle, monkeypatch, caplog):
    """ONNX Runtime names CUDA as available and then computes on the CPU: the session tells."""
    monkeypatch.setattr(engine_module, "gpu_problem", lambda: None)
    monkeypatch.setitem(engine_module.PROVIDERS, "cuda", ["CPUExecutionProvider"])
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(ProviderUnavailable, match="fell back"):
        Engine(bundle, provider="cuda")
    with caplog.at_level(logging.INFO, logger="service.engine.onnxruntime_engine"):
        assert Engine(bundle, provider="auto").provider == "cpu"
    assert len(caplog.records) == 1


def test_what_cuda_is_told():
    (cuda, options), cpu = engine_module.PROVIDERS["cuda"]
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_a_session_that_fails_is_not_computed_by_other_means(tiny_bundle):
    session = Engine(load_bundle(tiny_bundle), provider="cpu")._session("score")
    assert not session._enable_fallback
    assert session.get_session_options().use_deterministic_compute


def bound(bundle, sizes):
    """An engine on the CPU that goes the ways of a GPU."""
    engine = Engine(bundle, provider="cpu", max_rows=sizes[-1])
    engine._sessions = engine.bound_sessions("cpu")
    engine.concurrency = False
    engine.paddings = lambda: [Buckets(sizes)]
    engine.padding = Buckets(sizes)
    return engine


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def pair(request, tiny_bundle):
    """A usual engine, and one with fixed shapes and bound buffers."""
    bundle = load_bundle(tiny_bundle if request.param == "tiny" else SHIPPED)
    usual = Engine(bundle, provider="cpu")
    fixed = bound(bundle, (16, 32))
    usual.warm()
    fixed.warm()
    return usual, fixed


@pytest.mark.parametrize("operation", ["sample", "decode", "encode", "score"])
@pytest.mark.parametrize("rows", [1, 16, 21])
def test_bound_buffers_compute_the_same_bytes(pair, model_bench, operation, rows):
    usual, fixed = pair
    given = model_bench.inputs(usual.bundle, operation, rows, 1 + rows // 3, seed=rows)
    if operation != "score":
        given = model_bench.inputs(usual.bundle, operation, rows, seed=rows)
    expected, got = usual.run(operation, given), fixed.run(operation, given)
    again = fixed.run(operation, model_bench.inputs(usual.bundle, operation, rows, seed=99))
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), "and the next batch leaves it alone"
        assert again[name].shape[1:] == array.shape[1:]


def test_every_shape_is_prepared_and_nothing_else_is_kept(pair, model_bench):
    _, fixed = pair
    assert fixed.invariant
    prepared = set(fixed._sessions.sessions)
    assert len(prepared) == 3 * 2 + 3
    for rows in (1, 17, 32):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", rows, max(1, rows // 2)))
        fixed.run("sample", model_bench.inputs(fixed.bundle, "sample", rows))
    assert set(fixed._sessions.sessions) == prepared


def test_closing_lets_go_of_sessions(tiny_bundle, model_bench):
    fixed = bound(load_bundle(tiny_bundle), (8,))
    given = model_bench.inputs(fixed.bundle, "encode", 3)
    before = fixed.run("encode", given)["z"]
    fixed.close()
    assert not fixed._sessions.sessions
    assert np.array_equal(fixed.run("encode", given)["z"], before)
