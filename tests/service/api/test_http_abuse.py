"""Clients that mean harm, or are careless: bounded work for them, and true answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from service.codecs.npy import decode_npy, encode_npy
from service.codecs.png import encode_png

JSON = {"content-type": "application/json"}
NPY = {"content-type": "application/x-npy"}


def png_text(digit):
    file = io.BytesIO()
    Image.fromarray(digit[0]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------ JSON


def test_one_long_text_among_latents_is_not_multiplied(server, problem):
    # NumPy would give every place of its array the longest text's size: 16 GB for this body.
    row = json.dumps(["x" * 1_000_000, *["a"] * 2000])
    started = time.perf_counter()
    answer = server.post("/v1/decode", content=f'{{"latents": [{row}]}}', headers=JSON)
    problem(answer, 422, "wrong-shape")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("latents", "slug"),
    [
        ([[1, 2, True]], "invalid-input"),
        ([["1", 2, 3]], "invalid-input"),
        ([[1, 2, None]], "invalid-input"),
        ([[1, 2, [3]]], "invalid-input"),
        ([[1, 2, 3], [1, 2]], "wrong-shape"),
        ([[1, 2, 10**400]], "invalid-input"),
        ([[1, 2, 10**39]], "non-finite-input"),
        ([1, 2, 3], "invalid-input"),
        ({}, "invalid-input"),
    ],
)
def test_latents_that_are_no_matrix_of_numbers(server, problem, latents, slug):
    problem(server.post("/v1/decode", json={"latents": latents}), 422, slug)


@pytest.mark.parametrize("path", ["/v1/sample", "/v1/score", "/v1/decode"])
def test_bodies_of_very_many_values_are_not_parsed(server, problem, path):
    body = b'{"latents": [' + b"{}," * 300_000 + b"{}]}"
    detail = problem(server.post(path, content=body, headers=JSON), 413, "payload-too-large")
    assert "values" in detail


@pytest.mark.parametrize("path", ["/v1/sample", "/v1/score"])
def test_a_field_that_is_there_twice_is_refused_in_json_too(server, problem, path):
    answer = server.post(path, content=b'{"seed": 1, "seed": 2}', headers=JSON)
    assert "'seed'" in problem(answer, 422, "invalid-input")


def test_what_a_caller_sent_is_told_back_in_part(server, problem):
    many = {f"field{i}": 1 for i in range(500)}
    assert len(problem(server.post("/v1/sample", json=many), 422, "invalid-input")) <= 1000
    long = server.post("/v1/sample", content=b'{"n": ' + b"9" * 4000 + b"}", headers=JSON)
    assert len(problem(long, 422, "invalid-input")) <= 1000


@pytest.mark.parametrize("value", ["-1", "NaN", '"warm"', '["warm"]'])
def test_a_bad_temperature_is_told_once(server, problem, value):
    answer = server.post("/v1/sample", content=f'{{"temperature": {value}}}', headers=JSON)
    assert problem(answer, 422, "invalid-input").count("temperature=") == 1


def test_wrapped_base64_is_taken(server, digits):
    text = png_text(digits[0])
    wrapped = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    plain, folded = (
        server.post("/v1/score", json={"images": [given]}) for given in (text, wrapped + "\n")
    )
    assert folded.json()["results"] == plain.json()["results"]


# ------------------------------------------------------------------ what is computed, and said


@pytest.mark.parametrize("name", ["image/jpg", "image/x-png", "IMAGE/PNG; q=1"])
def test_what_clients_call_images(server, digits, name):
    content = encode_png(digits[0])
    answer = server.post("/v1/score", content=content, headers={"content-type": name})
    assert len(answer.json()["results"]) == 1


def test_images_that_are_no_numbers_are_said_to_be_none(server):
    # Latents overflow to infinities, and their sums to none: black pixels that no model has meant.
    wild = server.post("/v1/sample", json={"n": 50, "seed": 0, "temperature": 3.4e38})
    statuses = wild.json()["status"]
    assert 0 < statuses.count("non_finite") < 50
    assert wild.headers["x-iafvae-non-finite"] == str(statuses.count("non_finite"))
    counted = {"operation": "sample", "model": "tiny"}
    assert server.metric("iafvae_non_finite_results_total", **counted) >= 1
    usual = server.post("/v1/sample?n=2")
    assert usual.json()["status"] == ["ok", "ok"]
    assert "x-iafvae-non-finite" not in usual.headers


def test_no_seed_is_told_where_no_noise_was(server):
    latents = np.zeros((1, 3), np.float32)
    mean = server.post("/v1/decode?seed=4", content=encode_npy(latents), headers=NPY)
    assert mean.json()["seed"] is None
    assert "x-iafvae-seed" not in mean.headers


def test_the_seed_of_drawn_pixels_is_told(server, digits):
    def reconstruct(**options):
        body = encode_npy(digits[:1])
        return server.post("/v1/reconstruct", params=options, content=body, headers=NPY).json()

    assert any("pixels drawn with seed 0" in note for note in reconstruct(output="draw")["notes"])
    assert not any("pixels drawn" in note for note in reconstruct()["notes"])
    assert not any("pixels drawn" in note for note in reconstruct(output="draw", seed=5)["notes"])


def test_rows_are_bounded_before_images_are_decoded(serve, problem):
    client = serve(max_rows=32, max_importance_samples=16)
    texts = ["bm8gaW1hZ2U="] * 3  # no images at all, which nobody comes to see
    answer = client.post("/v1/score", json={"images": texts, "importance_samples": 16})
    assert "images times importance_samples" in problem(answer, 413, "payload-too-large")


def grey_png(side, more=b""):
    """Random pixels, with `more` chunks before them."""
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()[:33] + more + file.getvalue()[33:]


@pytest.mark.parametrize("form", ["files", "base64", "body"])
@pytest.mark.parametrize(
    ("image", "processes"),
    [
        (grey_png(28), 0),
        (grey_png(100), 0),
        (grey_png(180), 1),  # many bytes
        (grey_png(28, b"\0\0\0\0abCd\0\0\0\0" * 600), 1),  # long to look at
    ],
    ids=["small", "middle", "large", "of many parts"],
)
def test_only_what_is_small_is_decoded_on_the_event_loop(serve, form, image, processes):
    client = serve()
    how = {
        "files": {"files": {"files": image}, "params": {"resize": True}},
        "base64": {"json": {"images": [base64.b64encode(image).decode()], "resize": True}},
        "body": {
            "content": image,
            "headers": {"content-type": "image/png"},
            "params": {"resize": True},
        },
    }[form]
    answer = client.post("/v1/score", **how)
    assert answer.status_code == 200, answer.text
    assert client.app.state.shared.decoders.processes == processes


def test_many_tiny_files_are_not_decoded_on_the_event_loop(serve):
    """Each takes a fraction of a millisecond, however few its pixels are."""
    client, decoders = serve(), []
    for count in (32, 33):
        files = [("files", (f"{i}.png", grey_png(4))) for i in range(count)]
        assert client.post("/v1/score?importance_samples=1", files=files).status_code == 200
        decoders.append(client.app.state.shared.decoders.processes)
    assert decoders == [0, 1]


def test_the_deadline_holds_while_images_are_decoded(serve, problem, monkeypatch):
    """A process that takes for ever is killed, and the next image has another."""
    client = serve(timeout_seconds=1.0)
    dear = io.BytesIO()
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(dear, "PNG")
    decoders = client.app.state.shared.decoders

    class Stuck:
        is_alive = True

        async def ask(self, job):
            await asyncio.sleep(60)

        async def kill(self):
            pass

    async def stuck():
        return Stuck()

    with monkeypatch.context() as patch:
        patch.setattr(decoders, "_worker", stuck)
        started = time.perf_counter()
        answer = client.post("/v1/score?resize=true", files={"files": dear.getvalue()})
        problem(answer, 504, "deadline-exceeded")
        assert time.perf_counter() - started < 5
    assert decoders.processes == 0


# ------------------------------------------------------------------ HTTP


PAGES = ["/", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics"]


@pytest.mark.parametrize("path", [*PAGES, "/v1/models", "/v2", "/v2/health/ready"])
def test_head_is_answered(running, path):
    answer = httpx.head(running.url + path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_accept_headers_are_one_list(server):
    headers = [("accept", "text/html"), ("accept", "application/x-npy"), *JSON.items()]
    answer = server.post("/v1/sample", content=b'{"n": 2}', headers=headers)
    assert len(decode_npy(answer.content, dtypes=("uint8",), max_items=100)) == 2


def test_a_form_without_files_is_told_what_they_are(server, problem):
    form = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--b--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=b"}
    detail = problem(server.post("/v1/score", content=form, headers=kind), 422, "invalid-input")
    assert "filename" in detail
    whole = form.replace(b'"files"', b'"files"; filename="x.png"')
    cut = server.post("/v1/score", content=whole[:-8], headers=kind)
    assert "cut off" in problem(cut, 400, "malformed-body")


def exchange(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a server answers to `parts`, until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:  # refused in the middle of what was sent
            pass
    return answer


@pytest.mark.parametrize("path", ["/v1/sample?n=1&seed=1", "/v2/models/tiny.sample/infer"])
def test_a_length_with_many_zeros_is_that_number(running, path):
    """Python reads no more than 640 digits."""
    head = f"POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: "
    answer = exchange(running.port, head.encode() + 700 * b"0" + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200" if "v1" in path else b"HTTP/1.1 400")


def test_headers_without_end_are_refused(running):
    lines = [b"x-%d: %s\r\n" % (i, b"y" * 30_000) for i in range(200)]
    started = time.perf_counter()
    answer = exchange(running.port, b"GET /livez HTTP/1.1\r\nhost: t\r\n", *lines, pause=0.001)
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert time.perf_counter() - started < 3
    one = exchange(running.port, b"GET /livez HTTP/1.1\r\nhost: t\r\nx: ", b"y" * 30_000_000)
    assert not one or one.startswith(b"HTTP/1.1 400 ")
    assert time.perf_counter() - started < 6
    assert httpx.get(f"{running.url}/livez").status_code == 200


def test_a_body_that_does_not_come_ends_the_connection(start_server):
    running = start_server(IAFVAE_BODY_TIMEOUT_SECONDS="0.2")
    head = b"POST /v1/sample HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
    answer = exchange(running.port, head + b"content-length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
