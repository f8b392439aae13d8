"""What the operator chose to compute with, as callers see it."""

from __future__ import annotations

import importlib.util
import threading

import pytest

from service.settings import SettingsError, load_settings

EXTRA = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra `openvino` is not installed"
)


@pytest.mark.parametrize(
    ("backend", "provider"),
    [("onnxruntime", "cpu"), pytest.param("openvino", "openvino", marks=EXTRA)],
)
def test_every_answer_says_what_computed_it(serve, digits, backend, provider):
    server = serve(backend=backend)
    answers = [
        server.post("/v1/sample", json={"n": 2}),
        server.post("/v1/decode", json={"latents": [[0.0] * 3]}),
        server.get("/v1/models/tiny"),
    ]
    for answer in answers[:2]:
        assert answer.headers["x-iafvae-provider"] == provider
        assert answer.headers["x-iafvae-precision"] == "float32"
    assert provider in answers[2].text


@EXTRA
def test_backends_agree_on_a_seed(serve):
    options = {"n": 5, "seed": 3}
    headers = {"accept": "application/x-npy"}
    bodies = [
        serve(backend=name).post("/v1/sample", json=options, headers=headers).content
        for name in ("onnxruntime", "openvino")
    ]
    assert len(bodies[0]) == len(bodies[1])
    # Means as pixels: one level may round to the other side.
    assert sum(a != b for a, b in zip(*bodies, strict=True)) <= 2


def test_a_run_that_hangs_fails_liveness(serve, problem):
    """Its caller is answered; whoever probes replaces the process."""
    server = serve(hang_seconds=0.2)
    runtime = server.app.state.shared.registry.find("tiny").runtime
    gate = threading.Event()
    runtime.engine.compute = lambda *arguments, **options: gate.wait(20)
    assert server.get("/livez").status_code == 200
    try:
        problem(server.post("/v1/sample", json={"n": 2}), 500, "device-fault")
        assert server.get("/livez").status_code == 503
        assert server.get("/readyz").status_code == 503
        problem(server.post("/v1/sample", json={"n": 2}), 500, "device-fault")
    finally:
        gate.set()


def test_unknown_backends_are_refused(monkeypatch):
    monkeypatch.setenv("IAFVAE_BACKEND", "tensorflow")
    with pytest.raises(SettingsError, match="IAFVAE_BACKEND='tensorflow'"):
        load_settings()


def test_settings_become_the_engines_options(tmp_path):
    settings = load_settings(
        backend="openvino",
        provider="cpu",
        sampling_precision="bfloat16",
        gpu_memory_bytes=2**30,
        cuda_graphs=True,
        engine_cache=tmp_path,
    )
    for name in ("backend", "provider", "sampling_precision", "gpu_memory_bytes", "cuda_graphs"):
        assert getattr(settings.engine, name) == getattr(settings, name)
    assert settings.engine.engine_cache == tmp_path
