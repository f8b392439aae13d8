"""A rollout loses no request: replicas behind HAProxy are restarted one after the other, and models
are swapped and chosen, while callers ask without pause.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.codecs.npy import encode_npy

ROOT = Path(__file__).resolve().parents[2]
NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
LONG = (pytest.mark.slow, pytest.mark.timeout(1800))  # 10,000 requests and more
DRAIN = {"IAFVAE_DRAIN_DELAY_SECONDS": "1", "IAFVAE_WATCH_SECONDS": "0.2"}

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")


class Callers:
    """Threads that ask without pause until the end of the block; counts what they got."""

    def __init__(self, url: str, count: int = 4, pause: float = 0.0) -> None:
        self.url, self._pause, self._stop = url, pause, threading.Event()
        self.answers: list[tuple[int, str, bytes]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        body = encode_npy(np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
        with httpx.Client(base_url=self.url, headers=NPY, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    got = client.post("/v1/score", content=body)
                    self.answers.append(
                        (got.status_code, got.headers.get("x-iafvae-version", ""), got.content)
                    )
                except httpx.HTTPError as error:
                    self.answers.append((0, repr(error), b""))
                time.sleep(self._pause)

    def more(self, n: int) -> None:
        """Wait for `n` more answers."""
        until, deadline = len(self.answers) + n, time.monotonic() + 400
        while len(self.answers) < until:
            assert time.monotonic() < deadline, self.answers[-3:]
            time.sleep(0.02)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def models(tmp_path_factory, edition, put):
    folder = tmp_path_factory.mktemp("models")
    put(edition("1.0.0"), folder / "one")
    return folder


@pytest.fixture(scope="module")
def fleet(place, models):
    """The proxy's address, and a function that restarts a replica."""
    ports = [place.serve(models, **DRAIN) for _ in range(2)]
    replicas = dict(zip(ports, place.processes, strict=True))
    port = place.free_port()
    variables = {name: f"127.0.0.1:{p}" for name, p in zip(("ONE", "TWO"), ports, strict=True)}
    place.start(
        ["haproxy", "-db", "-f", ROOT / "deploy" / "haproxy.cfg"],
        f"http://127.0.0.1:{port}/readyz",
        LISTEN=f"127.0.0.1:{port}",
        **variables,
    )

    def restart(port: int, *, kill: bool = False) -> None:
        if kill:
            replicas[port].kill()
        else:
            replicas[port].terminate()
        assert replicas[port].wait(60) == (-signal.SIGKILL if kill else 0)
        place.serve(models, port, **DRAIN)
        replicas[port] = place.processes[-1]

    return f"http://127.0.0.1:{port}", ports, restart


def failures(callers: Callers) -> list[tuple[int, str]]:
    return [(status, text) for status, text, _ in callers.answers if status != 200]


@pytest.mark.parametrize("requests", [100, pytest.param(5000, marks=LONG)])
def test_a_rolling_restart_loses_no_request(fleet, requests):
    url, ports, restart = fleet
    with Callers(url, pause=0.0 if requests > 100 else 0.01) as callers:
        for port in ports:
            callers.more(requests)
            restart(port)
        callers.more(requests)
    assert not failures(callers)
    assert len({content for _, _, content in callers.answers}) == 1  # whoever computed it
    print(f"{len(callers.answers)} requests, none failed")  # noqa: T201


def test_a_replica_that_is_killed_loses_no_request(fleet):
    """What it had in hand is computed by the other one."""
    url, ports, restart = fleet
    with Callers(url) as callers:
        for port in ports:
            callers.more(100)
            restart(port, kill=True)
        callers.more(100)
    assert not failures(callers)
    assert len({content for _, _, content in callers.answers}) == 1
    print(f"{len(callers.answers)} requests, none failed")  # noqa: T201


@pytest.mark.parametrize("requests", [100, pytest.param(5000, marks=LONG)])
def test_a_new_version_and_its_rollback_lose_no_request(fleet, models, edition, put, requests):
    url = fleet[0]
    versions = lambda callers: {version for _, version, _ in callers.answers[-4:]}  # noqa: E731

    def wait_for(version: str) -> None:
        deadline = time.monotonic() + 60
        while versions(callers) != {version}:
            assert time.monotonic() < deadline, versions(callers)
            callers.more(8)

    with Callers(url, pause=0.0 if requests > 100 else 0.01) as callers:
        callers.more(requests)
        put(edition("2.0.0"), models / "two")  # beside the old one: the newest release answers
        wait_for("2.0.0")
        callers.more(requests)
        shutil.rmtree(models / "two")
        wait_for("1.0.0")
    assert not failures(callers)
    assert {version for _, version, _ in callers.answers} == {"1.0.0", "2.0.0"}
    for wanted in ("1.0.0", "2.0.0"):
        assert len({content for _, version, content in callers.answers if version == wanted}) == 1
    print(f"{len(callers.answers)} requests, none failed")  # noqa: T201


def test_a_canary_answers_only_who_asks_for_it(fleet, models, edition, put):
    """A version before its release, under load: everybody else stays with the release."""
    url, ports, _ = fleet
    canary, body = "3.0.0-rc.1", encode_npy(np.zeros((1, 4, 4), np.uint8))

    def asked(base: str) -> httpx.Response:
        return httpx.post(
            f"{base}/v1/score?version={canary}", headers=NPY, content=body, timeout=30
        )

    with Callers(url, pause=0.01) as callers:
        callers.more(20)
        put(edition(canary), models / "canary")
        deadline = time.monotonic() + 60
        for port in ports:  # both have it before it is asked for through the proxy
            while asked(f"http://127.0.0.1:{port}").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for _ in range(20):
            answer = asked(url)
            assert (answer.status_code, answer.headers["x-iafvae-version"]) == (200, canary)
        callers.more(100)
        shutil.rmtree(models / "canary")
        callers.more(100)
    assert not failures(callers)
    assert {version for _, version, _ in callers.answers} == {"1.0.0"}
