"""The order of a run: each system is started anew for its turn, and ended after it.

One server runs at a time, for idle ones cost processor time, too. Every turn begins with the bare
graph, so that each system is compared with what the machine could do at that minute; systems take
turns within a round, and rounds repeat. What was found is written down after every turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Closed, Poisson
from benchmarks.peers_env import CannotInstall
from benchmarks.peers_measure import CROWD, LOADS, Bench, Figures, WrongAnswerError, failed, run
from benchmarks.peers_process import Server, ServerError
from benchmarks.peers_protocols import npy
from benchmarks.peers_report import OURS, Entry, Results, best_peer, capacity
from benchmarks.peers_systems import System, service
from service.bundle import Bundle

# An operator bounds the queue by how long callers may wait: 256 rows take about a tenth of a
# second on two cores.
QUEUE_ROWS, IN_FLIGHT = 256, 64
STARTS = 2  # Triton gives its own parts a second to meet, which a busy machine may exceed
STEADY_SECONDS, MEMORY_REQUESTS = 60.0, 100_000
FRACTIONS = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Run:
    """Takes measurements and adds them to `results`; save: called after every turn."""

    bundle: Bundle
    bench: Bench
    envs: Path
    results: Results
    save: Callable[[Results], None]
    fractions: Sequence[float] = FRACTIONS
    steady_seconds: float = STEADY_SECONDS
    memory_requests: int = MEMORY_REQUESTS

    def closed(self, system: System, round_: int, loads: Sequence[str] = tuple(LOADS)) -> None:
        """Closed loops in every protocol of `system`."""
        bare = self.bench.bare()

        def measure(server: Server) -> None:
            for protocol in system.protocols:
                for load in loads:
                    found = self.bench.closed(protocol, server, load)
                    self._add(system, protocol.name, load, round_, found, bare)

        self._turn(system, measure)

    def poisson(self, system: System, round_: int) -> None:
        """Open loops of one-image requests at fractions of the best peer's capacity."""
        top = capacity(self.results, best_peer(self.results) or OURS)
        if top is None:
            raise SystemExit("open loops need a capacity: measure closed loops before, or as well")
        protocol = system.protocols[0]

        def measure(server: Server) -> None:
            for fraction in self.fractions:
                found = self.bench.poisson(protocol, server, fraction * top)
                self._add(system, protocol.name, f"poisson {fraction:.0%}", round_, found)

        self._turn(system, measure)

    def beside(self, round_: int) -> None:
        """Small requests beside one huge request."""
        self._alone("beside", round_, lambda s: self.bench.beside_huge(s, 0.2 * self._own(s)))

    def steady(self, round_: int) -> None:
        """80% of the service's own capacity for a minute."""

        def measure(server: Server) -> Figures:
            rate = 0.8 * self._own(server)
            load = Poisson(rate=rate, seconds=self.steady_seconds)
            found = run(server, self.bench.messages(npy(), 1), load).figures()
            return found | {"failed": failed(found)}

        self._alone("steady", round_, measure)

    def overload(self, round_: int) -> None:
        """Three times what the service can do, with a queue that an operator has bounded."""
        rows = ("max_queue_rows", "max_rows", "max_importance_samples")
        limits = {**dict.fromkeys(rows, QUEUE_ROWS), "max_in_flight": IN_FLIGHT}
        bounded = service(self.bundle, **limits)
        for size, clients in ((64, 4), (1, CROWD)):

            def measure(server: Server, size: int = size, clients: int = clients) -> Figures:
                top = self._own(server, size, clients)
                found = self.bench.poisson(npy(), server, 3.0 * top, size)
                return found | {"capacity": top}

            self._alone(f"overload {size}", round_, measure, bounded)

    def memory(self, round_: int) -> None:
        """Resident memory over many requests."""
        self._alone("memory", round_, lambda s: self.bench.memory(s, self.memory_requests))

    def starts(self, round_: int) -> None:
        """Seconds from start to ready, and the memory after one large request."""

        def measure(server: Server) -> Figures:
            self.bench.closed(npy(), server, "64x4")
            return {"ready_seconds": server.ready_seconds, "memory_mib": server.memory_mib()}

        self._alone("start", round_, measure)

    def _own(self, server: Server, size: int = 1, clients: int = CROWD) -> float:
        """What the service can do at this minute, in images/s."""
        messages = self.bench.messages(npy(), size)
        run(server, messages, Closed(clients=clients, seconds=1.0))
        load = Closed(clients=clients, seconds=max(1.0, self.bench.seconds / 2))
        return run(server, messages, load).figures()["images_per_second"]

    def _alone(
        self,
        load: str,
        round_: int,
        measure: Callable[[Server], Figures],
        system: System | None = None,
    ) -> None:
        chosen = system or service(self.bundle)
        protocol = chosen.protocols[0].name
        self._turn(chosen, lambda s: self._add(chosen, protocol, load, round_, measure(s)))

    def _turn(self, system: System, measure: Callable[[Server], None]) -> None:
        """Measure a server whose answers are right; what goes wrong with a peer is a result.

        A server that does not start is tried again.
        """
        try:
            python = system.environment.make(self.envs) if system.environment else sys.executable
            for left in reversed(range(STARTS)):
                if self._tried(system, python, measure, last=not left):
                    break
        except (CannotInstall, ServerError, WrongAnswerError, OSError) as error:
            if system.name == OURS:
                raise
            self.results.failures[system.name] = f"{type(error).__name__}: {error}"
            print(f"{system.name}: {error}", file=sys.stderr, flush=True)
        self.save(self.results)

    def _tried(
        self, system: System, python: Path | str, measure: Callable[[Server], None], *, last: bool
    ) -> bool:
        try:
            with system.running(self.bundle, python) as server:
                for protocol in system.protocols:
                    self.bench.checked(system, protocol, server)
                measure(server)
        except ServerError:
            if last:
                raise
            return False
        return True

    def _add(
        self,
        system: System,
        protocol: str,
        load: str,
        round_: int,
        found: Figures,
        bare: dict[str, Figures] | None = None,
    ) -> None:
        self.results.entries.append(Entry(system.name, protocol, load, round_, found, bare or {}))
        line: dict[str, Any] = {
            name: round(found[name], 2)
            for name in ("images_per_second", "goodput", "cpu_us", "p50_ms", "p99_ms")
            if name in found
        }
        print(f"{system.name}, {protocol}, {load}: {line or found}", file=sys.stderr, flush=True)
