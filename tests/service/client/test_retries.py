"""When a request is sent again, on a clock of the test's own."""

from __future__ import annotations

import httpx
import pytest

from service.client import Client, ProblemError, ServiceUnreachable
from service.client import client as client_module
from service.client import retries as retries_module

MODELS = {"default": "m", "models": []}


class Clock:
    """Time that passes where somebody sleeps."""

    def __init__(self):
        self.now, self.sleeps = 1000.0, []
        self.today = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT

    def monotonic(self):
        return self.now

    def time(self):
        return self.today

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retries_module, "time", clock)
    monkeypatch.setattr(client_module, "time", clock)
    return clock


def client_of(*answers, **options):
    """A client whose server gives these answers in turn, and the requests that it gets."""
    requests, left = [], list(answers)

    def serve(request):
        requests.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    http = httpx.Client(transport=httpx.MockTransport(serve), base_url="http://t")
    return Client(http=http, **options), requests


def busy(status=429, **headers):
    return httpx.Response(status, json={"type": "urn:x:overloaded", "title": "No"}, headers=headers)


GOOD = httpx.Response(200, json=MODELS)


@pytest.mark.parametrize(
    "first", [busy(), busy(502), busy(503), httpx.ConnectError("no"), httpx.ReadError("cut")]
)
def test_what_passes_is_sent_again(clock, first):
    client, requests = client_of(first, GOOD)
    assert client.models() == MODELS
    assert len(requests) == 2
    assert 0.1 <= clock.sleeps[0] <= 0.2


def test_waits_as_long_as_the_server_says(clock):
    client, _ = client_of(busy(**{"Retry-After": "7"}), busy(**{"Retry-After": "3"}), GOOD)
    assert client.models() == MODELS
    assert clock.sleeps == [7, 3]


def test_waits_grow_where_the_server_says_nothing(clock):
    client, _ = client_of(*[busy()] * 4, GOOD, retries=4)
    client.models()
    assert all(0.1 * 2**k <= wait <= 0.2 * 2**k for k, wait in enumerate(clock.sleeps))


def test_no_wait_goes_beyond_the_deadline(clock):
    client, requests = client_of(busy(**{"Retry-After": "30"}), timeout_seconds=20)
    with pytest.raises(ProblemError) as caught:
        client.models()
    assert (caught.value.type, caught.value.status) == ("overloaded", 429)
    assert len(requests) == 1
    assert clock.sleeps == []


def test_the_server_is_told_what_is_left(clock):
    client, requests = client_of(busy(**{"Retry-After": "4"}), GOOD, timeout_seconds=10)
    client.models()
    told = [float(request.headers["x-iafvae-timeout-seconds"]) for request in requests]
    assert told == [10, 6]
    assert requests[1].extensions["timeout"]["read"] == 6


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_what_does_not_pass_is_not_sent_again(clock, status):
    client, requests = client_of(busy(status))
    with pytest.raises(ProblemError):
        client.models()
    assert len(requests) == 1


def test_attempts_are_counted(clock):
    client, requests = client_of(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(ServiceUnreachable, match="refused"):
        client.models()
    assert len(requests) == 3
    client, requests = client_of(busy(), retries=0)
    with pytest.raises(ProblemError):
        client.models()
    assert len(requests) == 1


def test_waits_until_the_date_that_a_proxy_names(clock):
    later = "Fri, 15 Jan 2027 08:00:07 GMT"
    client, _ = client_of(busy(**{"Retry-After": later}), GOOD)
    assert client.models() == MODELS
    assert clock.sleeps == [7]


def test_an_answer_that_drips_ends_at_the_deadline(clock):
    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            while clock.now < 2000:
                clock.now += 1  # each piece is in time, the answer is not
                yield b" "

    slow = httpx.Response(200, stream=Drip(), headers={"content-type": "application/json"})
    client, requests = client_of(slow, timeout_seconds=20)
    with pytest.raises(ServiceUnreachable, match="in time"):
        client.models()
    assert clock.now <= 1021
    assert len(requests) == 1


@pytest.mark.parametrize("text", ["Wed, 21 Oct 2026 07:28:00 GMT", "", "-5", "soon", "nan"])
def test_other_forms_of_the_header_do_no_harm(clock, text):
    client, _ = client_of(busy(**{"Retry-After": text}), GOOD)
    assert client.models() == MODELS
    assert clock.sleeps[0] <= 0.2


def test_a_stream_is_asked_for_again_before_it_begins(clock, server):
    whole = server.post("/v1/sample?n=3&seed=1", headers={"accept": "application/x-npy"})
    body = httpx.Response(200, content=whole.content, headers=whole.headers)
    client, requests = client_of(busy(**{"Retry-After": "2"}), body)
    assert [len(piece) for piece in client.stream(3, seed=1)] == [3]
    assert clock.sleeps == [2]
    assert "x-iafvae-timeout-seconds" not in requests[0].headers  # it may take any time


def test_a_busy_server_is_not_said_to_be_missing(clock):
    client, requests = client_of(httpx.ReadTimeout(""))
    with pytest.raises(ServiceUnreachable, match="no answer from http://t in time: ask for less"):
        client.models()
    assert len(requests) == 1
