"""The ways of a GPU, gone in the host's memory by the same class: what CUDA is told, fixed shapes,
bound buffers, and how each fault ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from service.bundle import BundleError, load_bundle
from service.engine import choice
from service.engine import onnxruntime_engine as engine_module
from service.engine.choice import make_engine
from service.engine.cuda_engine import CudaEngine, cuda_options
from service.engine.onnxruntime_engine import CUDA, Engine
from service.engine.options import EngineOptions
from service.engine.padding import Buckets
from service.engine.self_check import float32_problem
from service.errors import DeviceFault, EngineFailure, ProviderUnavailable
from service.operations.model import Model
from service.scheduler.batching import batchers
from service.scheduler.scheduler import Scheduler
from service.settings import Settings

BUNDLES = Path(engine_module.__file__).parent.parent / "bundles"
SHIPPED = BUNDLES / "mnist"
OUT_OF_MEMORY = RuntimeError(
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv"
    " node. Status Message: bfc_arena.cc:437 Failed to allocate memory for requested buffer of size"
    " 1073741824"
)
LOST = RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")
BAD_ROWS = RuntimeError("indices element out of data bounds, CUDA or not")


def test_demanding_a_gpu_without_it_names_the_remedy(tiny_bundle, monkeypatch):
    monkeypatch.setattr(choice, "gpu_problem", lambda device: "there is no driver")
    with pytest.raises(
        ProviderUnavailable, match=r"there is no driver.*pip install -e '\.\[cuda\]'"
    ):
        make_engine(load_bundle(tiny_bundle), EngineOptions(provider="cuda"))


@pytest.mark.parametrize("path", ["load", "canary"])
def test_auto_takes_the_cpu_with_a_reason(tiny_bundle, monkeypatch, caplog, path):
    """Whatever is wrong with the device: its libraries, a graph, or what it computes."""
    monkeypatch.setattr(choice, "gpu_problem", lambda device: None)
    if path == "canary":

        class Wrong(CudaEngine):
            def __init__(self, bundle, options):
                super().__init__(bundle, options, "cpu")

            def wrong_answer(self, operation, got):
                return "z differs from the canary"

        monkeypatch.setattr(choice, "CudaEngine", Wrong)
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(BundleError):
        make_engine(bundle, EngineOptions(provider="cuda", max_rows=8))
    with caplog.at_level(logging.INFO, logger="service.engine.choice"):
        engine = make_engine(bundle, EngineOptions(max_rows=8))
    assert engine.provider == "cpu"
    assert "differs" in caplog.text if path == "canary" else "cannot load it" in caplog.text
    engine.close()


def test_why_the_cpu_computes_is_said_once(tiny_bundle, monkeypatch, caplog):
    monkeypatch.setattr(choice, "gpu_problem", lambda device: "nobody sold one")
    bundle = load_bundle(tiny_bundle)
    with caplog.at_level(logging.INFO, logger="service.engine.choice"):
        for _ in range(3):
            make_engine(bundle, EngineOptions(max_rows=8)).close()
    assert caplog.text.count("nobody sold one") == 1


class Opened:
    """A session that was made, with providers and options of its own."""

    def __init__(self, providers, told):
        self.get_providers = lambda: providers
        self.get_provider_options = lambda: {CUDA: told}


@pytest.mark.parametrize(
    ("providers", "told", "words"),
    [
        (["CPUExecutionProvider"], {}, "fell back"),
        ([CUDA, "CPUExecutionProvider"], {**cuda_options(1), "use_tf32": "1"}, "use_tf32=1"),
        ([CUDA, "CPUExecutionProvider"], {**cuda_options(0)}, "device_id=0"),
    ],
)
def test_every_session_is_asked_what_it_got(tiny_bundle, monkeypatch, providers, told, words):
    """ONNX Runtime names CUDA as available and then computes otherwise: the session tells."""
    asked = []

    def make(model, options, **given):
        asked.append((options.get_session_config_entry(engine_module.NO_FALLBACK), given))
        return Opened(providers, told)

    monkeypatch.setattr(engine_module.ort, "InferenceSession", make)
    engine = CudaEngine(load_bundle(tiny_bundle), device=1, max_rows=8)
    with pytest.raises(ProviderUnavailable, match=words):
        engine.run("decode", engine.bundle.canaries["decode"]["in"])
    no_cpu, given = asked[0]
    assert no_cpu == "1"
    assert given["providers"] == [(CUDA, cuda_options(1))], "naming the CPU would allow it"
    assert given["enable_fallback"] == 0


def test_what_cuda_is_told():
    assert cuda_options(3) == {
        "device_id": "3",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_sessions_have_fixed_sizes_and_are_deterministic(tiny_bundle):
    fixed = rehearsed(load_bundle(tiny_bundle), max_rows=8)
    fixed.run("score", fixed.bundle.canaries["score"]["in"])
    (session,) = [bound.session for bound in fixed.bound.values()]
    assert {str(value.shape[0]) for value in session.get_inputs()} == {"8"}
    assert session.get_session_options().use_deterministic_compute
    assert not session._enable_fallback


def test_no_larger_batch_is_made_ready_than_the_operator_allows(tiny_bundle):
    options = Settings(max_batch_rows=32).engine
    engine = CudaEngine(load_bundle(tiny_bundle), options, memory="cpu")
    assert engine.max_rows == 32
    assert engine.precision == "float32; buckets=16,32"
    usual = CudaEngine(load_bundle(tiny_bundle), Settings().engine, memory="cpu")
    assert usual.precision == "float32; buckets=16,64,256"


def rehearsed(bundle, **options):
    """An engine on the CPU that goes the ways of a GPU."""
    return CudaEngine(bundle, memory="cpu", **options)


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def pair(request, tiny_bundle):
    """A usual engine, and one with fixed shapes and bound buffers, of the same graphs."""
    bundle = load_bundle(tiny_bundle if request.param == "tiny" else SHIPPED)
    usual = Engine(bundle, provider="cpu", form="portable")
    fixed = rehearsed(bundle, max_rows=32)
    usual.warm()
    fixed.warm()
    yield usual, fixed
    fixed.close()


@pytest.mark.parametrize("operation", ["sample", "decode", "encode", "score"])
@pytest.mark.parametrize("rows", [1, 16, 21])
def test_bound_buffers_compute_the_same(pair, model_bench, operation, rows):
    """As an engine that shares its sessions and allocates for every batch."""
    usual, fixed = pair
    images = 1 + rows // 3 if operation == "score" else None
    given = model_bench.inputs(usual.bundle, operation, rows, images, seed=rows)
    expected, got = usual.run(operation, given), fixed.run(operation, given)
    kept = {name: array.copy() for name, array in got.items()}
    fixed.run(operation, model_bench.inputs(usual.bundle, operation, rows, seed=99))
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=2e-5)
        assert np.array_equal(got[name], kept[name]), "the next batch leaves it alone"
        assert got[name].shape == array.shape


def test_every_shape_is_prepared_and_nothing_else_is_kept(pair, model_bench):
    _, fixed = pair
    prepared = set(fixed.bound)
    assert fixed.padding == Buckets((16, 32))
    assert len(prepared) == 3 * 2 + 2 * 3
    for rows in (1, 17, 32):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", rows, max(1, rows // 2)))
        fixed.run("sample", model_bench.inputs(fixed.bundle, "sample", rows))
    assert set(fixed.bound) == prepared


def test_the_answer_says_how_batches_are_padded(pair, tiny_bundle):
    assert pair[1].precision == "float32; buckets=16,32"
    with_one = rehearsed(load_bundle(tiny_bundle), gpu_bucket=24)
    with_one.warm()
    assert with_one.precision == "float32; buckets=24"
    assert with_one.padding == Buckets((24,))
    assert with_one.invariant, "in one bucket rows are shown not to depend on their batch"
    with_one.close()


def test_in_one_bucket_a_row_has_the_same_bytes_alone_and_in_company(model_bench):
    fixed = rehearsed(load_bundle(SHIPPED), gpu_bucket=16)
    whole = model_bench.inputs(fixed.bundle, "score", 16, 16, seed=3)
    whole["owner"] = np.arange(16)
    together = fixed.run("score", whole)["log_weight"]
    for row in (0, 7, 15):
        alone = {name: array[row : row + 1] for name, array in whole.items()}
        alone["owner"] = np.zeros(1, np.int64)
        assert fixed.run("score", alone)["log_weight"][0] == together[row]
    fixed.close()


def test_one_thread_owns_the_device(tiny_bundle, monkeypatch):
    fixed = rehearsed(load_bundle(tiny_bundle), max_rows=8)
    seen = set()
    compute = fixed._compute

    def noted(*arguments):
        seen.add(threading.current_thread())
        return compute(*arguments)

    monkeypatch.setattr(fixed, "_compute", noted)
    given = fixed.bundle.canaries["encode"]["in"]
    callers = [threading.Thread(target=fixed.run, args=("encode", given)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    (owner,) = seen
    assert owner.name.startswith("gpu-owner")
    fixed.close()
    owner.join(5)
    assert not owner.is_alive()


def test_closing_lets_go_of_sessions(tiny_bundle, model_bench):
    fixed = rehearsed(load_bundle(tiny_bundle), max_rows=8)
    given = model_bench.inputs(fixed.bundle, "encode", 3)
    before = fixed.run("encode", given)["z"]
    fixed.close()
    assert not fixed.bound
    assert np.array_equal(fixed.run("encode", given)["z"], before)
    fixed.close()


class Injected:
    """Stands for the sessions of an engine: fails where `fails(operation, rows)` gives an error."""

    def __init__(self, engine, fails):
        self.engine, self.fails, self.rows = engine, fails, []
        self.compute = engine._compute
        engine._compute = self

    def __call__(self, operation, feed, shape):
        rows = max(shape.values())
        self.rows.append(rows)
        if error := self.fails(operation, rows):
            raise error
        return self.compute(operation, feed, shape)


@pytest.fixture
def fixed(tiny_bundle):
    made = rehearsed(load_bundle(tiny_bundle), max_rows=64)
    made.warm()
    yield made
    made.close()


@pytest.mark.parametrize("operation", ["sample", "score"])
def test_out_of_memory_halves_the_batch(fixed, model_bench, operation, caplog):
    images = 40 if operation == "score" else None
    given = model_bench.inputs(fixed.bundle, operation, 60, images)
    expected = fixed.run(operation, given)
    injected = Injected(fixed, lambda _, rows: OUT_OF_MEMORY if rows > 16 else None)
    got = fixed.run(operation, given)
    assert injected.rows == [64, 64, 16, 16, 64, 16, 16]
    assert "computed in halves" in caplog.text
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=vm",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4001: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "std::bad_alloc",
    ],
)
def test_what_never_fits_fails_its_rows_alone(fixed, model_bench, text):
    """Memory may be another process's: this one is sound."""
    injected = Injected(fixed, lambda *_: RuntimeError(text))
    with pytest.raises(EngineFailure, match="out of memory"):
        fixed.run("sample", model_bench.inputs(fixed.bundle, "sample", 60))
    assert injected.rows == [64, 64, 16], "no smaller bucket, no further try"


def test_bad_rows_are_no_fault_of_the_device(fixed, model_bench):
    """Whatever words the error has: the device still gives a known answer."""
    failing = iter([BAD_ROWS])
    Injected(fixed, lambda *_: next(failing, None))
    with pytest.raises(EngineFailure, match="out of data bounds"):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", 8))
    fixed.run("score", model_bench.inputs(fixed.bundle, "score", 8))


def test_no_memory_for_a_known_answer_is_no_lost_device(fixed, model_bench):
    failing = iter([BAD_ROWS, OUT_OF_MEMORY])
    Injected(fixed, lambda *_: next(failing, None))
    with pytest.raises(EngineFailure, match="out of data bounds"):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", 8))


def test_a_lost_device_is_known_by_its_silence(fixed, model_bench):
    """After it every call fails, the known answer too."""
    Injected(fixed, lambda *_: LOST)
    with pytest.raises(DeviceFault, match="illegal memory access"):
        fixed.run("score", model_bench.inputs(fixed.bundle, "score", 8))


def test_a_device_that_errs_and_then_computes_wrongly_is_lost(fixed, model_bench):
    failing = iter([BAD_ROWS])
    injected = Injected(fixed, lambda *_: next(failing, None))
    sound = injected.compute
    injected.compute = lambda *given: [array * 1.001 for array in sound(*given)]
    with pytest.raises(DeviceFault, match="differs from the canary"):
        fixed.run("encode", model_bench.inputs(fixed.bundle, "encode", 8))


def test_a_wrong_answer_is_not_served(tiny_bundle):
    """A hundredth of what the manifest's tolerance lets pass."""
    fixed = rehearsed(load_bundle(tiny_bundle), max_rows=8)
    sound = fixed._compute
    fixed._compute = lambda *given: [
        (array * np.float32(1 + 5e-5)).astype(array.dtype) for array in sound(*given)
    ]
    with pytest.raises(BundleError, match="more than float32 does"):
        fixed.warm()
    fixed.close()


@pytest.mark.parametrize("coarse", [16, 64])
def test_each_bucket_gives_the_known_answers(tiny_bundle, coarse):
    """A bucket has plans of its own: where float32 has none, cuDNN is asked again with TF32."""
    fixed = rehearsed(load_bundle(tiny_bundle), max_rows=64)
    sound = fixed._compute

    def some(operation, feed, shape):
        off = np.float32(1 + 5e-5 * (max(shape.values()) == coarse))
        return [(array * off).astype(array.dtype) for array in sound(operation, feed, shape)]

    fixed._compute = some
    with pytest.raises(BundleError, match="more than float32 does"):
        fixed.warm()
    fixed.close()


def tf32(array):
    """Ten bits of fraction instead of 23, rounded to nearest, as tensor cores read float32."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_canaries_notice_ten_bits(name, monkeypatch):
    """Weights read as TF32 reads them (half of what it loses): no operation passes."""
    bundle = load_bundle(BUNDLES / name)
    exact = rehearsed(bundle, max_rows=16)
    weights = bundle.manifest.weights_file
    raw = bytearray(bundle.read(weights))
    for weight in bundle.manifest.weights:
        if weight.dtype == "float32" and len(weight.shape) > 1:
            place = slice(weight.offset, weight.offset + weight.length)
            raw[place] = tf32(np.frombuffer(raw[place], np.float32)).tobytes()
    coarse = rehearsed(bundle, max_rows=16)
    coarse._files._files[weights] = bytes(raw)
    for operation, canary in bundle.canaries.items():
        assert exact.wrong_answer(operation, exact.run(operation, canary["in"])) is None
        got = coarse.run(operation, canary["in"])
        assert "more than float32" in float32_problem(got, canary["out"]), operation
    exact.close()
    coarse.close()


def scheduled(engine, use, **options):
    """Run `use(model)` of a started model on `engine`, with one more batch assembled beside it."""

    async def main():
        manifest = engine.bundle.manifest
        scheduler = Scheduler(
            engine,
            batchers(manifest),
            max_batch_rows=engine.max_rows,
            max_queue_rows=1000,
            prefetch=1,
            **options,
        )
        await scheduler.start()
        try:
            return await use(Model(engine.bundle, engine, scheduler))
        finally:
            await scheduler.stop(1.0)

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_device_that_hangs_fails_liveness(fixed, monkeypatch):
    release = threading.Event()
    Injected(fixed, lambda *_: release.wait(30) and None)
    monkeypatch.setattr("service.scheduler.workers.JOIN_SECONDS", 0.1)

    async def use(model):
        with pytest.raises(DeviceFault, match="has not come back"):
            await model.sample(4, seed=0)
        release.set()
        return model.healthy

    assert scheduled(fixed, use, hang_seconds=0.4) is False


def test_a_model_whose_device_hangs_stops(fixed, monkeypatch):
    """Closing would wait behind what hangs: the engine is left alone."""
    release = threading.Event()
    Injected(fixed, lambda *_: release.wait(30) and None)
    monkeypatch.setattr("service.scheduler.workers.JOIN_SECONDS", 0.1)

    async def use(model):
        with pytest.raises(DeviceFault, match="has not come back"):
            await model.sample(4, seed=0)
        await asyncio.wait_for(model.stop(), 10)
        kept = len(fixed.bound)
        release.set()
        return kept

    assert scheduled(fixed, use, hang_seconds=0.4) > 0


def test_a_lost_device_fails_liveness_and_bad_rows_do_not(fixed):
    failing = iter([BAD_ROWS])
    injected = Injected(fixed, lambda *_: next(failing, None))

    async def use(model):
        with pytest.raises(EngineFailure):
            await model.sample(4, seed=0)
        after_bad_rows = model.healthy
        await model.sample(4, seed=0)
        injected.fails = lambda *_: LOST
        with pytest.raises(DeviceFault):
            await model.sample(4, seed=0)
        return after_bad_rows, model.healthy

    assert scheduled(fixed, use) == (True, False)


def test_noise_is_made_while_the_device_computes(fixed, monkeypatch):
    """The second batch is assembled while the first is held on the device."""
    held, assembled = threading.Event(), threading.Event()

    def hold(*_):
        if not held.is_set():
            held.set()
            assert assembled.wait(20), "nothing was assembled beside the device"

    Injected(fixed, hold)

    async def use(model):
        batcher = model.scheduler._runner._batchers["sample"]
        assemble = batcher.assemble

        def noted(pieces):
            arrays = assemble(pieces)
            if held.is_set():
                assembled.set()
            return arrays

        batcher.assemble = noted
        first = asyncio.create_task(model.sample(4, seed=0))
        await asyncio.to_thread(held.wait, 20)
        second = asyncio.create_task(model.sample(4, seed=1))
        await asyncio.gather(first, second)

    scheduled(fixed, use)
    assert assembled.is_set()
