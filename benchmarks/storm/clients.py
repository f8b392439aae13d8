"""Clients of the chaos test: those that ask in earnest, and those that harm.

Each client does one thing after another, chosen by a generator of its own. What it meets is
tallied; what may not be is a fault: a wrong answer, an error that is not the documented one, a
connection that ends or hangs where the client has done nothing to it.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.storm.judge import Ask, Judge
from benchmarks.storm.wire import Answer, Wire, head, pieces

PATIENCE_SECONDS = 60.0  # nothing takes as long, unless it hangs
BROKEN = (OSError, EOFError)  # asyncio.IncompleteReadError is an EOFError
JSON = {"content-type": "application/json"}
# Bodies that are not what they say: path, content type, body, and the error that says so.
GARBLED = (
    ("/v1/sample", "application/json", b'{"n": 3', "malformed-body"),
    ("/v1/sample", "application/json", b'{"n": -3}', "invalid-input"),
    ("/v1/score", "application/json", b'{"images": ["bm9wZQ=="]}', "undecodable-image"),
    ("/v1/score", "application/x-npy", b"\x93NUMPY\x01\x00\xff\xff", "malformed-body"),
    ("/v1/score", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(40), "undecodable-image"),
    ("/v1/encode", "multipart/form-data; boundary=b", b"--b\r\n\r\nx", "malformed-body"),
    ("/v1/decode", "application/json", b'{"latents": [[1]]}', "wrong-shape"),
    ("/v1/score", "text/plain", b"hello", "unsupported-media-type"),
    ("/v1/sample", "application/json", b'{"model": "nobody"}', "unknown-model"),
    ("/v2/models/tiny.sample/infer", "application/json", b'{"inputs": [', "400"),
    ("/v2/models/nobody.sample/infer", "application/json", b'{"inputs": []}', "404"),
)


@dataclass
class Tally:
    """What happened. heads: requests to operations of which the server has seen the head; maybe:
    that it may have seen; seen: errors (and "ok") that were told natively; slowest: answer.
    """

    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    heads: int = 0
    maybe: int = 0
    slowest: float = 0.0


@dataclass
class Site:
    """The server as clients know it.

    keys: headers of those who may call; models: names that always answer; passing: one that comes
    and goes; leaving: when SIGTERM was sent.
    """

    port: int
    judge: Judge
    asks: list[Ask]
    keys: list[dict[str, str]]
    models: list[str]
    passing: str
    max_body_bytes: int
    tally: Tally = field(default_factory=Tally)
    leaving: float = float("inf")
    ended: bool = False


class Client:
    """One of many. `run` goes on until the site has ended."""

    def __init__(self, site: Site, seed: str) -> None:
        self._site, self._rng = site, random.Random(seed)  # noqa: S311 - it shall repeat itself
        self._wire: Wire | None = None
        self._doing = ""

    async def run(self, habits: dict[str, int], first: str) -> None:
        """Do what `habits` say, by weight, and `first` of all that."""
        names, weights, following = list(habits), list(habits.values()), first
        while not self._site.ended:
            self._doing, following = following, self._rng.choices(names, weights)[0]
            act: Callable[[], Awaitable[str]] = getattr(self, self._doing)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    outcome = await act()
            except TimeoutError:
                outcome = self._fault(f"no answer within {PATIENCE_SECONDS:g} s")
            except BROKEN as error:
                self._hang_up()
                outcome = self._fault(f"the connection ended ({type(error).__name__})")
            self._site.tally.told[self._doing, outcome] += 1
            if self._site.leaving < float("inf"):
                await asyncio.sleep(0.05)  # the last ones meet closed doors, again and again
        self._hang_up()

    # ------------------------------------------------------------------ in earnest

    async def asks(self) -> str:
        """A request, on a connection that is kept."""
        return await self._ask()

    async def drips(self) -> str:
        """A request whose body comes in pieces, slowly, but in time."""
        return await self._ask(pause=0.02)

    async def hurries(self) -> str:
        """A request that has milliseconds."""
        seconds = self._rng.choice((0.001, 0.002, 0.005, 0.02))
        hurry = {"x-iafvae-timeout-seconds": str(seconds)}
        return await self._ask(headers=hurry, also=("deadline-exceeded", "504"))

    async def visits(self) -> str:
        """A request to a model that may be away."""
        return await self._ask(model=self._site.passing, also=("unknown-model", "404"))

    async def _ask(
        self,
        *,
        headers: dict[str, str] | None = None,
        model: str | None = None,
        also: tuple[str, ...] = (),
        pause: float = 0.0,
    ) -> str:
        ask = self._rng.choice(self._site.asks)
        model = model or self._rng.choice(self._site.models)
        body, began = ask.body, time.monotonic()
        sent = {**self._key(), **ask.headers, **(headers or {})}
        try:
            wire = self._wire = self._wire or await Wire.open(self._site.port)
            start = head(ask.path.format(model=model), sent, len(body))
            await wire.send(start, *(pieces(body, 4) if pause else [body]), pause=pause)
            answer = await wire.answer()
        except BROKEN as error:
            self._hang_up()
            if began > self._site.leaving:
                return "closed at the end"
            return self._fault(f"{ask.name}: no answer ({type(error).__name__})")
        self._site.tally.slowest = max(self._site.tally.slowest, time.monotonic() - began)
        return self._judged(ask, answer, also, began)

    def _judged(self, ask: Ask, answer: Answer, also: tuple[str, ...], began: float) -> str:
        site, slug = self._site, self._noted(answer)
        if slug == "ok":
            wrong = site.judge.problem(ask, answer.headers["x-iafvae-bundle"], answer.body)
            return "right" if wrong is None else self._fault(wrong)
        if answer.status == 429:
            if int(answer.headers.get("retry-after", "0")) < 1:
                return self._fault("refused without a time to come back")
            return slug
        leaving = answer.status == 503 and began > site.leaving
        if slug in also or leaving:
            return slug
        return self._fault(f"{ask.name}: {slug} {answer.body[:200]!r}")

    # ------------------------------------------------------------------ harm

    async def garbles(self) -> str:
        """A body that is not what it says."""
        path, kind, body, expected = self._rng.choice(GARBLED)
        sent = {**self._key(), "content-type": kind}
        return await self._told(head(path, sent, len(body)) + body, expected)

    async def exceeds(self) -> str:
        """More than is taken: declared, in chunks, images, rows."""
        most, kind = self._site.max_body_bytes, {**self._key(), **JSON}
        chunk = b"%x\r\n%s\r\n" % (most, b" " * most)
        request = self._rng.choice(
            (
                head("/v1/score", kind, 100 * most) + b"{",
                head("/v1/score", kind, None) + chunk + chunk,
                head("/v1/sample?n=1000000", self._key(), 0),
                head("/v1/sample", kind, 16) + b'{"n": 123456789}',
            )
        )
        return await self._told(request, "payload-too-large", keep=False)

    async def stalls(self) -> str:
        """A body that does not come to its end."""
        start = head("/v1/score", {**self._key(), **JSON}, 1000) + b'{"images"'
        return await self._told(start, "request-timeout", keep=False)

    async def intrudes(self) -> str:
        """A key that is none."""
        stranger = {"authorization": "Bearer nobody"}
        return await self._told(head("/v1/sample", stranger, 0), "unauthorized")

    async def leaves_the_head(self) -> str:
        """Hang up before the head is whole."""
        await self._leave(self._request()[0][:-2], abort=self._rng.random() < 0.5, heads=0)
        return "left"

    async def leaves_the_body(self) -> str:
        """Hang up within the body."""
        start, body = self._request()
        await self._leave(start + body[: len(body) // 2], abort=self._rng.random() < 0.5)
        return "left"

    async def leaves_waiting(self) -> str:
        """Hang up while the answer is computed."""
        start, body = self._request()
        wait = self._rng.choice((0.0, 0.001, 0.01))
        await self._leave(start + body, abort=self._rng.random() < 0.5, wait=wait)
        return "left"

    async def leaves_the_answer(self) -> str:
        """Hang up while the answer is sent."""
        wire = await Wire.open(self._site.port)
        try:
            await wire.send(b"".join(self._request(streamed=True)))
            self._site.tally.heads += 1
            status, headers = await wire.head()
            if status != 200:
                size = int(headers["content-length"])
                return Answer(status, headers, await wire.body(size)).slug
            await wire.body(100)
        finally:
            wire.close(abort=self._rng.random() < 0.5)
        return "left"

    async def _leave(
        self, request: bytes, *, abort: bool, wait: float = 0.0, heads: int = 1
    ) -> None:
        """Send it on a connection of its own, and go. A reset may overtake what was sent."""
        wire = await Wire.open(self._site.port)
        await wire.send(request)
        tally = self._site.tally
        tally.heads, tally.maybe = tally.heads + heads * (not abort), tally.maybe + heads * abort
        await asyncio.sleep(wait)
        wire.close(abort=abort)

    async def _told(self, request: bytes, expected: str, *, keep: bool = True) -> str:
        """Send `request` and be told the `expected` error; keep: the connection after it, of which
        the server has read everything."""
        wire = (self._wire if keep else None) or await Wire.open(self._site.port)
        if keep:
            self._wire = wire
        try:
            await wire.send(request)
            answer = await wire.answer()
        finally:
            if not keep:
                wire.close()
        slug = self._noted(answer)
        if slug == expected:
            return slug
        return self._fault(f"{slug} instead of {expected}: {answer.body[:200]!r}")

    # ------------------------------------------------------------------ what all do

    def _request(self, *, streamed: bool = False) -> tuple[bytes, bytes]:
        """Head and body of a request to a model that is there."""
        ask = self._rng.choice([a for a in self._site.asks if a.streamed or not streamed])
        path = ask.path.format(model=self._rng.choice(self._site.models))
        return head(path, {**self._key(), **ask.headers}, len(ask.body)), ask.body

    def _key(self) -> dict[str, str]:
        return self._rng.choice(self._site.keys)

    def _noted(self, answer: Answer) -> str:
        """Count an answer, and say what it is."""
        self._site.tally.heads += 1
        slug = answer.slug
        self._site.tally.seen[slug] += not slug.isdecimal()
        if answer.headers.get("connection", "").lower() == "close":
            self._hang_up()
        return slug

    def _fault(self, what: str) -> str:
        self._site.tally.faults[f"{self._doing}: {what}"] += 1
        return "FAULT"

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
