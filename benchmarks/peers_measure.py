"""Measurements of one server: answers first, then loads; and what the service alone must stand."""

from __future__ import annotations

import socket
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load import PATIENCE_SECONDS, Closed, Generator, Load, Message, Poisson
from benchmarks.load_answers import HttpAnswer, Reader
from benchmarks.load_results import Kind, Outcome
from benchmarks.peers_bare import BEST_ROWS, bare, cores
from benchmarks.peers_graph import ScoreGraph
from benchmarks.peers_process import Server
from benchmarks.peers_protocols import Images, Protocol, npy
from benchmarks.peers_systems import System

MANY, CROWD, FEW = 64, 32, 4
DIFFERENT = 8  # requests of each kind, sent in turn
RELATIVE, ABSOLUTE = 1e-4, 1e-2  # between an answer and the graph's, in nats
WARM_SECONDS = 1.0
OPEN_PATIENCE_SECONDS = 3.0  # a server that cannot keep up is not waited for
PAIRS, HUGE_PATIENCE_SECONDS = 3, 60.0
HUGE_IMAGES, HUGE_SAMPLES = 256, 64  # rows: the most that the service takes in one request
LOADS: Mapping[str, str] = {
    "64x4": "64 images a request, 4 clients",
    "1x32": "one image a request, 32 clients",
    "1x1": "one image a request, 1 client",
}

Figures = dict[str, float]


class WrongAnswerError(Exception):
    """A server whose answers are not those of the graph."""


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common."""

    graph: ScoreGraph
    images: Images  # at least MANY * DIFFERENT
    seconds: float

    @property
    def warm_seconds(self) -> float:
        """Of load that is not measured."""
        return min(WARM_SECONDS, self.seconds)

    def bare(self) -> dict[str, Figures]:
        """The graph alone, as much as the cores can, and one caller of one image."""
        many, one = self.images[:MANY], self.images[:1]
        return {
            "64x4": bare(self.graph, many, cores(), self.seconds / 2).figures(),
            "best": bare(self.graph, self.images[:BEST_ROWS], cores(), self.seconds / 2).figures(),
            "1x1": bare(self.graph, one, 1, self.seconds / 2).figures(),
        }

    def messages(self, protocol: Protocol, size: int) -> list[Message]:
        """`DIFFERENT` requests of `size` images."""
        parts = [self.images[i * size : (i + 1) * size] for i in range(DIFFERENT)]
        return [Message(protocol.request(part), size) for part in parts]

    def checked(self, system: System, protocol: Protocol, server: Server) -> None:
        """Compare answers with the graph's. Raises WrongAnswerError."""
        for images in (self.images[:MANY], self.images[:1], self.images[1:2]):
            answer = ask(server.port, protocol.request(images))
            if answer.status != 200:
                raise WrongAnswerError(f"{answer.status}: {answer.body[:300]!r}")
            got, wanted = protocol.scores(answer), system.expected(self.graph, images)
            if got.shape != wanted.shape or not np.allclose(got, wanted, RELATIVE, ABSOLUTE):
                raise WrongAnswerError(f"{got[:4]}, but the graph says {wanted[:4]}")

    def closed(self, protocol: Protocol, server: Server, load: str) -> Figures:
        """One of `LOADS`, after a short one of the same kind."""
        size, clients = (int(part) for part in load.split("x"))
        messages = self.messages(protocol, size)
        if protocol.name == "npy":  # the same bytes in any company: every answer is compared
            messages = [
                Message(m.request, m.images, ask(server.port, m.request).body) for m in messages
            ]
        run(server, messages, Closed(clients=clients, seconds=self.warm_seconds))
        figures = run(server, messages, Closed(clients=clients, seconds=self.seconds)).figures()
        return figures | {"memory_mib": server.memory_mib()}

    def poisson(
        self, protocol: Protocol, server: Server, images_per_second: float, size: int = 1
    ) -> Figures:
        """Requests of `size` images that arrive at a rate, whatever becomes of them."""
        messages = self.messages(protocol, size)
        run(server, messages, Closed(clients=CROWD, seconds=self.warm_seconds))
        rate = images_per_second / size
        load = Poisson(rate=rate, seconds=self.seconds)
        return run(server, messages, load, OPEN_PATIENCE_SECONDS).figures()

    def beside_huge(self, server: Server, images_per_second: float) -> Figures:
        """Small requests alone, and beside one caller who sends huge ones without a pause.

        Medians over pairs of the two: a 99th percentile of seconds is easily disturbed.
        """
        run(server, self.messages(npy(), 1), Closed(clients=CROWD, seconds=self.warm_seconds))
        pairs = [self._beside(server, images_per_second, seed) for seed in range(PAIRS)]
        return {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}

    def _beside(self, server: Server, images_per_second: float, seed: int) -> Figures:
        messages = self.messages(npy(), 1)
        load = Poisson(rate=images_per_second, seconds=self.seconds, seed=seed)
        alone = run(server, messages, load).figures()
        path = f"/v1/score?importance_samples={HUGE_SAMPLES}"
        huge = Message(npy(path).request(self.images[:HUGE_IMAGES]), HUGE_IMAGES)
        found: list[Figures] = []

        def send_huge() -> None:
            generator = Generator(server.port, [huge], patience_seconds=HUGE_PATIENCE_SECONDS)
            found.append(generator.run(Closed(clients=1, seconds=self.seconds)).figures())

        thread = threading.Thread(target=send_huge)
        thread.start()
        beside = run(server, messages, load).figures()
        thread.join()
        return {
            "alone_p50_ms": alone["p50_ms"],
            "alone_p99_ms": alone["p99_ms"],
            "beside_p50_ms": beside["p50_ms"],
            "beside_p99_ms": beside["p99_ms"],
            "huge_requests": found[0]["ok"],
            "failed": failed(alone) + failed(beside) + failed(found[0]),
        }

    def memory(self, server: Server, requests: int, parts: int = 10) -> Figures:
        """Resident memory while `requests` are answered, in `parts`."""
        messages = self.messages(npy(), 1)
        sizes, lost = [], 0.0
        for _ in range(parts):
            load = Closed(clients=CROWD, requests=requests / parts)
            lost += failed(run(server, messages, load).figures())
            sizes.append(server.resident_mib())
        return {
            "requests": float(requests),
            "failed": lost,
            "first_mib": sizes[0],
            "last_mib": sizes[-1],
            "most_mib": max(sizes),
        }


def run(
    server: Server,
    messages: Sequence[Message],
    load: Load,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Outcome:
    """One measurement."""
    return Generator(server.port, messages, server.cpu_seconds, patience_seconds).run(load)


def failed(figures: Mapping[str, float]) -> float:
    """Requests that were not answered rightly, for whatever reason."""
    return sum(figures[kind.value] for kind in Kind if kind is not Kind.OK)


def ask(port: int, request: bytes) -> HttpAnswer:
    """One request on a connection of its own."""
    reader = Reader()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(request)
        while data := sock.recv(1 << 16):
            if (answer := reader.feed(data)) is not None:
                return answer
    raise WrongAnswerError("the server hung up")
