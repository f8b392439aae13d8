"""The ways of a GPU, gone on a CPU: providers and what they are told, fixed shapes, bound buffers,
weights held once.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from service.bundle import load_bundle
from service.engine import onnxruntime_engine as engine_module
from service.engine.base import EngineOptions
from service.engine.initializers import external_tensors
from service.engine.onnxruntime_engine import Engine
from service.engine.padding import Buckets
from service.engine.providers import (
    SessionPlan,
    computes_with_tensorrt,
    device_providers,
    memory_shares,
    shape_profile,
)
from service.errors import ProviderUnavailable

SHIPPED = Path(engine_module.__file__).parent.parent / "bundles" / "mnist"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_demanding_a_gpu_without_it_names_the_remedy(tiny_bundle, monkeypatch, provider):
    monkeypatch.setattr(engine_module, "_gpu_problem", lambda provider: "there is no driver")
    with pytest.raises(ProviderUnavailable, match=r"there is no driver.*iafvae\[cuda\]"):
        Engine(load_bundle(tiny_bundle), provider=provider)


def test_a_silent_fallback_is_noticed(tiny_bundle, monkeypatch, caplog):
    """ONNX Runtime names CUDA as available and then computes on the CPU: the session tells."""
    monkeypatch.setattr(engine_module, "_gpu_problem", lambda provider: None)
    create = Engine._create
    monkeypatch.setattr(
        Engine,
        "_create",
        lambda self, operation, providers, share: create(
            self, operation, ["CPUExecutionProvider"], None
        ),
    )
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(ProviderUnavailable, match="fell back"):
        Engine(bundle, provider="cuda")
    with caplog.at_level(logging.INFO, logger="service.engine.onnxruntime_engine"):
        assert Engine(bundle, provider="auto").provider == "cpu"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_a_precision_that_the_provider_does_not_have_is_refused(tiny_bundle, precision):
    with pytest.raises(ProviderUnavailable, match="cpu provider cannot sample in"):
        Engine(load_bundle(tiny_bundle), provider="cpu", sampling_precision=precision)


def plan(operation="sample", *, exact=False, memory_bytes=None):
    return SessionPlan(
        operation=operation, exact=exact, memory_bytes=memory_bytes, profile="eps:4x3", name="b-s-4"
    )


def cuda(provider, options, **of_plan):
    providers = device_providers(provider, options, plan(**of_plan))
    assert providers[-1] == "CPUExecutionProvider"
    return dict(providers[:-1])


def test_what_cuda_is_told():
    told = cuda("cuda", EngineOptions(), operation="score", memory_bytes=123)
    assert list(told) == ["CUDAExecutionProvider"]
    options = told["CUDAExecutionProvider"]
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["gpu_mem_limit"] == "123"
    assert options["enable_cuda_graph"] == "0"
    graphs = cuda("cuda", EngineOptions(cuda_graphs=True))["CUDAExecutionProvider"]
    assert graphs["enable_cuda_graph"] == "1"
    assert "gpu_mem_limit" not in graphs


@pytest.mark.parametrize(
    ("operation", "exact", "tf32"),
    [("sample", False, "1"), ("decode", False, "1"), ("sample", True, "0"), ("score", False, "0")],
)
def test_tf32_is_for_samples_alone(operation, exact, tf32):
    told = cuda("cuda", EngineOptions(sampling_precision="tf32"), operation=operation, exact=exact)
    assert told["CUDAExecutionProvider"]["use_tf32"] == tf32


def test_what_tensorrt_is_told(tmp_path):
    options = EngineOptions(sampling_precision="float16", engine_cache=tmp_path)
    told = cuda("tensorrt", options, memory_bytes=99)
    assert list(told) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    tensorrt = told["TensorrtExecutionProvider"]
    assert tensorrt["trt_fp16_enable"] == "True"
    assert tensorrt["trt_bf16_enable"] == "False"
    for which in ("min", "opt", "max"):
        assert tensorrt[f"trt_profile_{which}_shapes"] == "eps:4x3"
    assert tensorrt["trt_engine_cache_path"] == str(tmp_path)
    assert tensorrt["trt_engine_cache_prefix"] == "b-s-4-float16"
    assert tensorrt["trt_max_workspace_size"] == "99"
    # Densities stay with CUDA, where TF32 can be turned off.
    assert list(cuda("tensorrt", options, operation="score")) == ["CUDAExecutionProvider"]
    assert not computes_with_tensorrt("tensorrt", "encode")
    exact = cuda("tensorrt", options, exact=True)["TensorrtExecutionProvider"]
    assert exact["trt_fp16_enable"] == "False"


def test_a_profile_names_every_input_with_its_shape(tiny_bundle):
    graph = load_bundle(tiny_bundle).manifest.graphs["score"]
    profile = shape_profile(graph, {"N": 4, "R": 16})
    assert profile == "image:4x1x4x4,owner:16,eps:16x3"


def test_memory_is_shared_out_by_size():
    sessions = [("sample", (256,)), ("sample", (16,)), ("score", (16, 64))]
    shares = memory_shares(10**9, sessions)
    assert set(shares) == set(sessions)
    assert 0.99e9 < sum(shares.values()) <= 10**9
    assert shares["sample", (256,)] > shares["score", (16, 64)] > shares["sample", (16,)] > 0


def bound(bundle, sizes):
    """An engine on the CPU that goes the ways of a GPU."""
    engine = Engine(bundle, provider="cpu", max_rows=sizes[-1])
    engine._lane = engine.bound_lane("cpu")
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
    prepared = set(fixed._lane.sessions)
    assert len(prepared) == 3 * 2 + 3
    for rows in (1, 17, 32):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", rows, max(1, rows // 2)))
        fixed.run("sample", model_bench.inputs(fixed.bundle, "sample", rows))
    assert set(fixed._lane.sessions) == prepared


def test_weights_are_held_once(pair):
    _, fixed = pair
    manifest = fixed.bundle.manifest
    blob = fixed.bundle.read(manifest.weights_file)
    used = {}
    for graph in manifest.graphs.values():
        for tensor in external_tensors(fixed.bundle.read(graph.file)):
            assert tensor.location == manifest.weights_file
            used[tensor.offset, tensor.length, tensor.shape] = tensor.read(blob)
    assert set(fixed._weights) == set(used)
    for place, value in fixed._weights.items():
        assert np.array_equal(value.numpy(), used[place])
    assert sum(a.nbytes for a in used.values()) <= len(blob)


def test_closing_lets_go_of_sessions_and_weights(tiny_bundle, model_bench):
    fixed = bound(load_bundle(tiny_bundle), (8,))
    given = model_bench.inputs(fixed.bundle, "encode", 3)
    before = fixed.run("encode", given)["z"]
    fixed.close()
    assert not fixed._lane.sessions
    assert not fixed._weights
    assert np.array_equal(fixed.run("encode", given)["z"], before)
