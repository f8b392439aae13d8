"""The short way to the operations: who takes it, and how many at once."""

from __future__ import annotations

import asyncio

import pytest

from service.api.security.admission import Gate, Pace
from service.api.security.middleware import HotPaths


def scope(path="/v1/score", method="POST"):
    return {"type": "http", "method": method, "path": path, "headers": [], "state": {}}


async def unread():
    raise AssertionError("a request that is refused is not read")


class Bench:
    """The middleware before an operation that waits to be let go, and what it answered."""

    def __init__(self, limit):
        self.open, self.served, self.other = asyncio.Event(), 0, 0
        self.telemetry = Telemetry()
        targets = {"/v1/score": self._operation}
        self.gate = Gate(limit, frozenset(targets), self.telemetry)
        self.paths = HotPaths(self._else, targets=targets, infer=self._operation, gate=self.gate)

    async def _operation(self, scope, receive, send):
        await self.open.wait()
        self.served += 1
        if scope["path"].endswith("m/infer"):
            raise RuntimeError("broken")

    async def _else(self, scope, receive, send):
        self.other += 1

    async def ask(self, **given):
        sent = []

        async def send(message):
            sent.append(message)

        await self.paths(scope(**given), unread, send)
        return sent

    def hold(self, count, **given):
        return [asyncio.create_task(self.ask(**given)) for _ in range(count)]

    def refused(self, operation):
        labels = {"operation": operation, "model": "", "outcome": "overloaded"}
        return self.telemetry.registry.get_sample_value("iafvae_requests_total", labels)


@pytest.mark.parametrize(
    ("path", "operation"), [("/v1/score", "score"), ("/v2/models/m.score/infer", "infer")]
)
def test_above_the_limit_requests_are_refused_unread(path, operation):
    async def main():
        bench = Bench(limit=3)
        held = bench.hold(3, path=path)
        await asyncio.sleep(0)
        head, body = await bench.ask(path=path)
        assert head["status"] == 429
        assert dict(head["headers"])[b"retry-after"] == b"1"
        assert b"3 requests are being worked on" in body["body"]
        assert bench.refused(operation) == 1
        bench.open.set()
        await asyncio.gather(*held)
        assert await bench.ask(path=path) == []
        assert (bench.served, bench.refused(operation)) == (4, 1)

    asyncio.run(main())


def test_what_ends_badly_or_is_cancelled_leaves_its_place():
    async def main():
        bench = Bench(limit=1)
        (gone,) = bench.hold(1)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        bench.open.set()
        with pytest.raises(RuntimeError):
            await bench.ask(path="/v2/models/m/infer")
        assert await bench.ask() == []
        assert bench.refused("score") is None

    asyncio.run(main())


def test_probes_and_pages_are_never_refused():
    async def main():
        bench = Bench(limit=1)
        held = bench.hold(1)
        await asyncio.sleep(0)
        for path, method in [("/livez", "GET"), ("/metrics", "GET"), ("/v1/score", "GET")]:
            await bench.ask(path=path, method=method)
        assert bench.other == 3
        bench.open.set()
        await asyncio.gather(*held)

    asyncio.run(main())


def test_callers_are_told_when_to_come_again(monkeypatch):
    """A quarter of a second from answer to answer, with twelve at work: in three seconds."""
    clock = [0.0]
    monkeypatch.setattr("service.api.security.admission.time.monotonic", lambda: clock[0])
    pace = Pace()
    for _ in range(2000):
        clock[0] += 0.25
        pace.step()
    assert pace.seconds == pytest.approx(0.25)

    async def main():
        bench = Bench(limit=12)
        bench.gate._pace = pace
        held = bench.hold(12)
        await asyncio.sleep(0)
        head, _ = await bench.ask()
        assert dict(head["headers"])[b"retry-after"] == b"3"
        bench.open.set()
        await asyncio.gather(*held)

    asyncio.run(main())
