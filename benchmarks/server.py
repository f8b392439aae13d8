"""A server as a process with all that it starts: their processor time, their memory, their end."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
START_SECONDS, STOP_SECONDS = 120.0, 20.0


class ServerError(Exception):
    """A server that did not start, or did not stay; the message says what it wrote."""


class Server:
    """A running server on a port of the loopback."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, others: frozenset[int]
    ) -> None:
        self.process, self.port, self._log, self._others = process, port, log, others
        self.ready_seconds = 0.0

    def cpu_seconds(self) -> float:
        """User and system time so far of the whole tree, with children that have ended."""
        return sum(sum(map(int, fields[11:15])) for fields in self._tree().values()) / TICKS

    def memory_mib(self) -> float:
        """Resident memory of the whole tree; pages that processes share are counted once."""
        return sum(_proportional_kib(pid) for pid in self._tree()) / 1024

    def resident_mib(self) -> float:
        """Resident memory of the first process alone: cheap, for watching it grow."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def wait_until_ready(self, path: str, seconds: float = START_SECONDS) -> None:
        """Until `path` answers 200. Raises ServerError."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            if self.process.poll() is not None:
                raise ServerError(f"it ended with {self.process.returncode}: {self.last_words()}")
            with suppress(URLError, OSError):
                url = f"http://127.0.0.1:{self.port}{path}"
                with urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        self.ready_seconds = time.perf_counter() - began
                        return
            time.sleep(0.02)
        raise ServerError(f"it was not ready after {seconds:g} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it wrote."""
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for whatever is left of the tree, by its ids."""
        tree = self._tree()
        with suppress(ProcessLookupError):
            self.process.terminate()
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and self._alive(tree):
            time.sleep(0.05)
            if self.process.poll() is not None:
                self._signal(tree, signal.SIGTERM)
        self._signal(tree, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        for pid in tree:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _tree(self) -> dict[int, list[str]]:
        """The processes of the server, by id.

        What loses its parent becomes a child of ours (`adopt_orphans`), so these are all that we
        have, but for those that were there before.
        """
        return descendants(os.getpid(), self._others)

    def _alive(self, tree: Mapping[int, object]) -> list[int]:
        now = self._tree()
        return [pid for pid in tree if pid in now and now[pid][0] != "Z"]

    def _signal(self, tree: Mapping[int, list[str]], number: int) -> None:
        for pid in self._alive({**tree, **self._tree()}):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def serving(
    command: Sequence[str],
    port: int,
    ready: str,
    variables: Mapping[str, str],
    directory: Path,
    log: Path,
) -> Iterator[Server]:
    """Start a server, wait for it, and end it and all that it started, whatever happens."""
    others = frozenset(descendants(os.getpid()))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(variables),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for us, who then stop it
            preexec_fn=_die_with_parent,
        )
    server = Server(process, port, log, others)
    try:
        server.wait_until_ready(ready)
        yield server
    finally:
        server.stop()


def adopt_orphans() -> None:
    """Processes whose parents have ended become our children, so that none gets lost."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(root: int, without: Collection[int] = ()) -> dict[int, list[str]]:
    """Of all descendants of `root` but those `without`: ``/proc/PID/stat`` after the name."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        if pid not in without:
            children.setdefault(int(fields[1]), []).append(pid)
    found, left = {}, list(children.get(root, ()))
    while left:
        pid = left.pop()
        found[pid] = stats[pid]
        left += children.get(pid, ())
    return found


def _proportional_kib(pid: int) -> int:
    with suppress(OSError, ValueError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rollup.partition("\nPss:")[2].split()[0])
    return 0
