"""What the operator chose to compute with, as callers see it."""

from __future__ import annotations

import threading

import pytest

from service.settings import SettingsError, load_settings


def test_every_answer_says_what_computed_it(serve, digits):
    server = serve()
    answers = [
        server.post("/v1/sample", json={"n": 2}),
        server.post("/v1/decode", json={"latents": [[0.0] * 3]}),
        server.get("/v1/models/tiny"),
    ]
    for answer in answers[:2]:
        assert answer.headers["x-iafvae-provider"] == "cpu"
        assert answer.headers["x-iafvae-precision"] == "float32"
    assert "cpu" in answers[2].text


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


def test_unknown_providers_are_refused(monkeypatch):
    monkeypatch.setenv("IAFVAE_PROVIDER", "tensorrt")
    with pytest.raises(SettingsError, match="IAFVAE_PROVIDER='tensorrt'"):
        load_settings()


def test_settings_become_the_engines_options():
    assert load_settings(provider="cpu").engine.provider == "cpu"
