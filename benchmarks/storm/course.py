"""A server under chaos: started, stormed, looked at, ended under load.

What must hold: every answer is right, every other outcome is honest, nothing hangs, the service is
ready afterwards, its counts add up, and SIGTERM under load loses nothing that was asked before it.
"""

import asyncio
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.score_graph import ScoreGraph, graph_file
from benchmarks.server import Server
from benchmarks.storm.attacks import LIVE_SECONDS, live, p99_ms
from benchmarks.storm.clients import Client, Site, Tally
from benchmarks.storm.judge import Judge, asks
from benchmarks.systems import service
from service.api.security.keys import key_line

MAX_N = 64
LIMITS = {  # within reach
    "watch_seconds": 0.1,
    "max_batch_rows": 16,  # so that large requests are in many batches
    "max_n": MAX_N,
    "max_rows": 2048,
    "max_queue_rows": 2048,
    "max_body_bytes": 262_144,
    "body_timeout_seconds": 1.0,
    "drain_delay_seconds": 1.0,  # between SIGTERM and the end of service
}
KEYS = {"boss": "test@admin", "one": "one", "two": "two"}  # key -> holder
BOSS = {"authorization": "Bearer boss"}
HARMFUL = {
    "garbles": 3,
    "exceeds": 2,
    "stalls": 1,
    "intrudes": 1,
    "leaves_the_head": 1,
    "leaves_the_body": 2,
    "leaves_waiting": 4,
    "leaves_the_answer": 2,
}
HABITS = {"asks": 20, "drips": 2, "hurries": 4, "visits": 3, **HARMFUL}
QUIET_SECONDS, END_SECONDS = 30.0, 60.0
PATIENCE = 8  # times `Storm.seconds`, for everything to have had its turn


@dataclass(frozen=True, kw_only=True)
class Storm:
    """How much of it. seconds: of chaos; last_seconds: of load before SIGTERM; seed: of all that
    clients choose; swap_seconds: between two changes of a model.
    """

    seconds: float = 4.0
    last_seconds: float = 0.5
    clients: int = 16
    seed: int = 0
    swap_seconds: float = 0.3


@dataclass
class Report:
    """What became of it. Empty `faults` are success.

    changes: of models, by what the server said; memory_mib: of the server, before and after;
    live_seconds: that `/livez` took meanwhile.
    """

    tally: Tally
    faults: Counter[str]
    changes: Counter[str] = field(default_factory=Counter)
    memory_mib: tuple[float, float] = (0.0, 0.0)
    live_seconds: list[float] = field(default_factory=list)

    @property
    def live_p99_ms(self) -> float:
        return p99_ms(self.live_seconds)


async def storm(editions: Mapping[str, Sequence[Path]], folder: Path, how: Storm) -> Report:
    """Chaos on a server of its own.

    editions: of the models ``tiny`` (changed by the administrator), ``watched`` (by the directory)
    and ``passing`` (that is taken out and in again), each as two bundles; folder: for their copies.
    """
    root, keys = folder / "models", folder / "keys"
    root.mkdir()
    keys.write_text("".join(key_line(n, name) + "\n" for n, name in KEYS.items()))
    for name, bundles in editions.items():
        put(bundles[0], root / name)
    shape = ScoreGraph(graph_file(editions["tiny"][0], "score")).image_shape
    asked = asks(shape, streamed=8 * MAX_N)
    judge = Judge([path for bundles in editions.values() for path in bundles], asked)
    with service(root / "tiny", keys_file=keys, **LIMITS).running(root) as server:
        site = Site(
            port=server.port,
            judge=judge,
            asks=asked,
            keys=[{"authorization": f"Bearer {key}"} for key in KEYS],
            models=["tiny", "watched"],
            passing="passing",
            max_body_bytes=int(LIMITS["max_body_bytes"]),
        )
        return await _Course(server, site, editions, root, how).run()


class _Course:
    """One run, from the first request to the process's end."""

    def __init__(
        self,
        server: Server,
        site: Site,
        editions: Mapping[str, Sequence[Path]],
        root: Path,
        how: Storm,
    ) -> None:
        self._server, self._site, self._editions = server, site, editions
        self._root, self._how = root, how
        self._report = Report(site.tally, site.tally.faults)
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}", headers=BOSS, timeout=END_SECONDS
        )

    async def run(self) -> Report:
        async with self._http:
            before = self._server.resident_mib()
            async with self._clients(HABITS, "chaos"), self._disturbed():
                await self._everything_done()
            await self._quiet()
            self._report.memory_mib = before, self._server.resident_mib()
            await self._ask_all()
            await self._end()
        return self._report

    async def _everything_done(self) -> None:
        """So many seconds, and until everything has happened once; a busy machine is slow."""
        began, how = time.monotonic(), self._how
        while (passed := time.monotonic() - began) < how.seconds * PATIENCE:
            met = {doing for doing, _ in self._site.tally.told}
            swapped = any("swapped" in change for change in self._report.changes)
            if passed > how.seconds and met >= set(HABITS) and swapped:
                return
            await asyncio.sleep(0.05)
        self._fault("not everything has had its turn")

    @asynccontextmanager
    async def _clients(self, habits: dict[str, int], name: str) -> AsyncGenerator[None, None]:
        """Clients meanwhile; afterwards each ends what it does."""
        self._site.ended = False
        seeds = [f"{self._how.seed}-{name}-{i}" for i in range(self._how.clients)]
        first = list(habits)
        running = [
            asyncio.create_task(Client(self._site, seed).run(habits, first[i % len(first)]))
            for i, seed in enumerate(seeds)
        ]
        try:
            yield
        finally:
            self._site.ended = True
            await asyncio.gather(*running)

    @asynccontextmanager
    async def _disturbed(self) -> AsyncGenerator[None, None]:
        """Models change meanwhile."""
        jobs = (self._swap, self._change_watched, self._let_pass, self._ask_livez)
        running = [asyncio.create_task(job()) for job in jobs]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            for ended in await asyncio.gather(*running, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    self._fault(f"the disturber ended: {ended!r}")

    # ------------------------------------------------------------------ what disturbs

    async def _swap(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self._how.swap_seconds)
            number += 1
            put(self._editions["tiny"][number % 2], self._root / "tiny")
            await self._administer("tiny", "load")

    async def _change_watched(self) -> None:
        """Other bundles, and now and then one that is broken, which must change nothing."""
        number = 0
        while True:
            await asyncio.sleep(2 * self._how.swap_seconds)
            number += 1
            bundle = self._editions["watched"][number % 2]
            put(bundle, self._root / "watched", broken=number % 3 == 0)

    async def _let_pass(self) -> None:
        while True:
            for change in ("unload", "load"):
                await asyncio.sleep(self._how.swap_seconds)
                await self._administer("passing", change)

    async def _ask_livez(self) -> None:
        while True:
            await asyncio.sleep(LIVE_SECONDS)
            # A thread: the clients' turns are long, and are not the server's.
            self._report.live_seconds.append(await asyncio.to_thread(live, self._server.port))

    async def _administer(self, name: str, change: str) -> None:
        answer = await self._http.post(f"/v1/admin/models/{name}/{change}")
        told: dict[str, Any] = answer.json()
        outcome = told.get("change") or str(told["type"]).rsplit(":", 1)[-1]
        self._report.changes[f"{change} {name}: {outcome}"] += 1
        # Another change is under way; or one that was refused for it has left its model out.
        known = {200: True, 409: True, 404: change == "unload"}
        if not known.get(answer.status_code):
            self._fault(f"{change} {name}: {answer.status_code} {answer.text[:200]}")

    # ------------------------------------------------------------------ what must hold then

    async def _metrics(self) -> list[Sample]:
        page = (await self._http.get("/metrics")).text
        return [s for family in text_string_to_metric_families(page) for s in family.samples]

    async def _quiet(self) -> None:
        """Wait until all has come to rest: nothing waits, nothing retires, it is ready."""
        end = time.monotonic() + QUIET_SECONDS
        while True:
            page = await self._metrics()
            busy = [f"{s.name}{s.labels} is {s.value:g}" for s in page if is_busy(s)]
            uncounted = self._uncounted(page)
            ready = (await self._http.get("/readyz")).status_code == 200
            if ready and not busy and not uncounted:
                return
            if time.monotonic() > end:
                for what in (*busy, *uncounted, *(() if ready else ("not ready",))):
                    self._fault(f"after the storm: {what}")
                return
            await asyncio.sleep(0.1)

    def _uncounted(self, page: list[Sample]) -> list[str]:
        """What the server has counted against what its clients know."""
        tally, counted = self._site.tally, Counter[str]()
        for sample in page:
            if sample.name == "iafvae_requests_total":
                counted[sample.labels["outcome"]] += int(sample.value)
        total = sum(counted.values())
        wrong = [
            f"{counted[slug]:g} {slug} are counted, {seen} were told"
            for slug, seen in tally.seen.items()
            if counted[slug] < seen
        ]
        if not tally.heads <= total <= tally.heads + tally.maybe:
            most = tally.heads + tally.maybe
            wrong.append(f"{total:g} requests are counted, {tally.heads} to {most} were sent")
        return wrong

    async def _ask_all(self) -> None:
        """Each kind of request once more, of each model."""
        for model in self._site.models:
            for ask in self._site.asks:
                path = ask.path.format(model=model)
                answer = await self._http.post(path, content=ask.body, headers=ask.headers)
                bundle = answer.headers.get("x-iafvae-bundle", "")
                if answer.status_code != 200:
                    self._fault(f"afterwards {ask.name}: {answer.status_code}")
                elif wrong := self._site.judge.problem(ask, bundle, answer.content):
                    self._fault(f"afterwards {wrong}")

    async def _end(self) -> None:
        """SIGTERM while many ask."""
        process = self._server.process
        async with self._clients({"asks": 1}, "end"):
            await asyncio.sleep(self._how.last_seconds)
            self._site.leaving = time.monotonic()
            process.send_signal(signal.SIGTERM)
            try:
                code = await asyncio.to_thread(process.wait, END_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
        if code != 0:
            self._fault(f"after SIGTERM the process ended with {code}")

    def _fault(self, what: str) -> None:
        self._report.faults[what] += 1


def is_busy(sample: Sample) -> bool:
    """Whether it says that somebody is served."""
    waits = sample.name == "iafvae_queue_rows"
    retires = sample.name == "iafvae_models" and "retiring" in sample.labels.values()
    return (waits or retires) and sample.value != 0


def put(bundle: Path, destination: Path, *, broken: bool = False) -> None:
    """Copy `bundle` to where another may stand; whoever looks sees the old or the new one."""
    staging = destination.with_name(f".{destination.name}.new")
    old = destination.with_name(f".{destination.name}.old")
    shutil.copytree(bundle, staging)
    if broken:
        weights = staging / "weights.bin"
        weights.write_bytes(weights.read_bytes()[:-1])
    if destination.exists():
        destination.rename(old)
    staging.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
