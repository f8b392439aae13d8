"""A request that is over holds nothing: what only the garbage collector can free stays for long."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from types import FrameType

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings


def form(content):
    head = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--B--\r\n"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(size):
    file = io.BytesIO()
    Image.fromarray(np.zeros((size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


FORM, NPY, JSON = b"multipart/form-data; boundary=B", b"application/x-npy", b"application/json"
V2 = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1], "data": [0]}]}
REQUESTS = {  # status, path, content type, body
    "a picture": (200, "/v1/score", FORM, form(picture(4))),
    "arrays": (200, "/v1/score", NPY, npy(np.zeros((40, 4, 4), np.uint8))),
    "drawn": (200, "/v1/sample", JSON, b'{"n": 20}'),
    "no picture": (422, "/v1/score", FORM, form(b"no picture")),
    "no picture, for a decoder's process": (422, "/v1/score", FORM, form(b"\r\n" * 300_000)),
    "another size": (422, "/v1/score", FORM, form(picture(9))),
    "half an array": (400, "/v1/score", NPY, npy(np.zeros((40, 4, 4), np.uint8))[:-9]),
    "no JSON": (400, "/v1/sample", JSON, b"{"),
    "numbers, for a process": (
        422,
        "/v1/score",
        JSON,
        b'{"images": [%s1]}' % (b"9" * 999 + b",") * 400,
    ),
    "an option that is none": (422, "/v1/sample", JSON, b'{"m": 20}'),
    "no model": (404, "/v1/sample", JSON, b'{"model": "none"}'),
    "another question": (404, "/v2/models/tiny/infer", JSON, json.dumps(V2).encode()),
    "too slow": (504, "/v1/score?importance_samples=1024", NPY, npy(np.zeros((4, 4, 4), np.uint8))),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_nothing_is_left_of_a_request(tiny_bundle, monkeypatch, ask_app, name):
    status, path, kind, body = REQUESTS[name]
    path, _, query = path.partition("?")
    headers = [(b"content-type", kind)]
    headers += [(b"x-iafvae-timeout-seconds", b"0.01")] * ("samples" in query)
    monkeypatch.setattr("service.api.request.limits.LISTEN_SECONDS", 0.0)  # as in a slow one
    settings = Settings(models=tiny_bundle, provider="cpu", max_batch_rows=1)

    async def ask(app):
        return (await ask_app(app, path, query.encode(), body, *headers))[0]["status"]

    async def main():
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            found = [await ask(app)]  # what is made once is made
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                found.append(await ask(app))
                await asyncio.sleep(0.05)
                gc.collect()
                left = [each.f_code.co_qualname for each in gc.garbage if type(each) is FrameType]
                return found, left
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    found, left = asyncio.run(main())
    assert found == [status, status]
    assert left == []
