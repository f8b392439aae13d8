"""The operations behind Ray Serve, without Ray: what a request is answered by the class itself."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request

from service.codecs.npy import encode_npy
from service.errors import EngineFailure, Overloaded

PROGRAM = Path(__file__).resolve().parents[2] / "deploy" / "on_ray" / "serve_app.py"


def deployment(**_):
    def bound(cls):
        cls.bind = classmethod(lambda cls: cls)
        return cls

    return bound


@pytest.fixture
def scores(monkeypatch):
    ray = types.ModuleType("ray")
    ray.serve = types.SimpleNamespace(deployment=deployment)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return runpy.run_path(str(PROGRAM))["Scores"]


def request(body):
    async def receive():
        return {"type": "http.request", "body": body}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_errors_say_whose_they_are(scores, tiny_bundle, tiny_model):
    digits = tiny_model.images(3)

    async def main():
        app = scores.__new__(scores)
        await app.__init__(str(tiny_bundle))
        good = await app(request(encode_npy(digits)))
        assert good.status_code == 200
        assert np.isfinite(json.loads(good.body)["log_likelihood_nats"]).all()
        assert (await app(request(b"nothing"))).status_code == 400

        async def failing(images):
            raise error

        app.model.score = failing
        error = Overloaded("later", 2.5)
        busy = await app(request(encode_npy(digits)))
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "3")
        error = EngineFailure("broken")
        with pytest.raises(EngineFailure):
            await app(request(encode_npy(digits)))
        await app.model.stop(1.0)

    asyncio.run(main())
