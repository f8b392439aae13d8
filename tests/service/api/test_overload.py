"""A real server with more requests than it takes at once: who is refused, and what becomes of the
connection."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager

import httpx
import pytest

# A stream that nobody reads: its request is worked on until the connection ends.
HELD = (
    b"POST /v1/sample?n=1000000&seed=0 HTTP/1.1\r\nhost: t\r\n"
    b"accept: application/x-npy\r\ncontent-length: 0\r\n\r\n"
)
SAMPLE = b"POST /v1/sample?n=1&seed=0 HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n%b\r\n"


@pytest.fixture(scope="module")
def full(launch):
    """A server of which one request, whose answer is not read, takes the only place."""
    running = launch(IAFVAE_MAX_IN_FLIGHT="1")
    with connected(running.port) as holder:
        holder.sendall(HELD)
        for _ in range(200):
            if httpx.post(f"{running.url}/v1/sample").status_code == 429:
                break
            time.sleep(0.02)
        yield running, holder
    running.process.terminate()
    assert running.process.wait(20) == 0


@contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def answer(connection):
    """Status, headers and body of the next answer on a connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or pytest.fail("closed")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536) or pytest.fail("closed")
    return int(first.split()[1]), headers, body


def test_the_refusal_is_whole_and_the_connection_stays(full):
    running, _ = full
    with connected(running.port) as connection:
        for _ in range(3):
            connection.sendall(SAMPLE % b"x-request-id: mine\r\n")
            status, headers, body = answer(connection)
            assert status == 429
            assert headers["content-type"] == "application/problem+json"
            assert headers["x-request-id"] == "mine"
            assert int(headers["retry-after"]) >= 1
            assert headers["x-content-type-options"] == "nosniff"
            assert "date" in headers
            problem = json.loads(body)
            assert problem["type"] == "urn:iafvae:problem:overloaded"
            assert (problem["request_id"], problem["instance"]) == ("mine", "/v1/sample")
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n")
        assert answer(connection)[0] == 200


def test_requests_in_one_piece_are_answered_in_order(full):
    running, _ = full
    with connected(running.port) as connection:
        connection.sendall(SAMPLE % b"" + b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\n" + SAMPLE % b"")
        data = b""
        while data.count(b"HTTP/1.1 ") < 3 or not data.endswith((b"}", b"\n")):
            data += connection.recv(65536) or pytest.fail("closed")
        assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"429", b"200", b"429"]


def test_a_client_that_wants_the_connection_closed_has_it_closed(full):
    running, _ = full
    with connected(running.port) as connection:
        connection.sendall(SAMPLE % b"connection: close\r\n")
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (429, "close")
        assert connection.recv(1) == b""


POST = b"POST /v1/score HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n"


def test_a_short_body_is_awaited_before_its_request_is_refused(full):
    """As HTTP/2 at a proxy sends it. Refused before, the next request could be taken for it."""
    running, _ = full
    with connected(running.port) as connection:
        connection.sendall(POST % 60)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(b"x" * 60)
        status, headers, _ = answer(connection)
        assert (status, headers.get("connection")) == (429, None)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: t\r\n\r\n")
        assert answer(connection)[0] == 200


def test_a_long_body_that_comes_after_its_refusal_is_passed_over(full):
    """After it the connection ends: a proxy could take it for free while the body comes."""
    running, _ = full
    with connected(running.port) as connection:
        connection.sendall(POST % 300_000)
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (429, "close")
        connection.sendall(b"x" * 300_000)
        assert connection.recv(1) == b""


def test_v2_has_its_own_form_and_metrics_count(full):
    running, _ = full
    refused = httpx.post(f"{running.url}/v2/models/tiny.score/infer", json={})
    assert refused.status_code == 429
    assert set(refused.json()) == {"error"}
    counted = 'iafvae_requests_total{model="",operation="infer",outcome="overloaded"}'
    assert counted in httpx.get(f"{running.url}/metrics").text


def test_a_place_that_is_free_again_is_taken(full):
    """Runs last: the request that held it hangs up."""
    running, holder = full
    holder.close()
    for _ in range(200):
        status = httpx.post(f"{running.url}/v1/sample", json={"n": 1}).status_code
        if status == 200:
            break
        time.sleep(0.02)
    assert status == 200


@pytest.mark.parametrize("setting", ["IAFVAE_ACCESS_LOG", "IAFVAE_CORS_ORIGINS"])
def test_what_every_answer_must_go_through_refusals_do(launch, setting, capfd):
    value = {"IAFVAE_ACCESS_LOG": "true", "IAFVAE_CORS_ORIGINS": "https://example.org"}[setting]
    running = launch(IAFVAE_MAX_IN_FLIGHT="1", **{setting: value})
    with connected(running.port) as holder:
        holder.sendall(HELD)
        for _ in range(200):
            refused = httpx.post(
                f"{running.url}/v1/sample", headers={"origin": "https://example.org"}
            )
            if refused.status_code == 429:
                break
            time.sleep(0.02)
        assert refused.status_code == 429
        allowed = refused.headers.get("access-control-allow-origin")
        assert allowed == (value if setting == "IAFVAE_CORS_ORIGINS" else None)
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
    running.process.terminate()
    assert running.process.wait(20) == 0
    log = "".join(capfd.readouterr())
    assert (refused.json()["request_id"] in log) == (setting == "IAFVAE_ACCESS_LOG")
