"""A server as a process with all that it starts: their processor time, their memory, their end."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
START_SECONDS, STOP_SECONDS = 120.0, 20.0


class ServerError(Exception):
    """A server that did not start, or did not stay; the message says what it wrote."""


class Server:
    """A running server on a port of the loopback. others: processes that are not of it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        log: Path,
        others: frozenset[psutil.Process],
    ) -> None:
        self.process, self.port, self._log, self._others = process, port, log, others
        self.ready_seconds = 0.0

    def cpu_seconds(self) -> float:
        """User and system time so far of the whole tree, with children that have ended."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
        return total

    def memory_mib(self) -> float:
        """Resident memory of the whole tree; pages that processes share are counted once."""
        total = 0
        for process in self._tree():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 2**20

    def resident_mib(self) -> float:
        """Resident memory of the first process alone: cheap, for watching it grow."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def wait_until_ready(self, path: str) -> None:
        """Until `path` answers 200. Raises ServerError."""
        began = time.perf_counter()
        while time.perf_counter() - began < START_SECONDS:
            if self.process.poll() is not None:
                raise ServerError(f"it ended with {self.process.returncode}: {self.last_words()}")
            with suppress(URLError, OSError):
                url = f"http://127.0.0.1:{self.port}{path}"
                with urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        self.ready_seconds = time.perf_counter() - began
                        return
            time.sleep(0.02)
        raise ServerError(f"it was not ready after {START_SECONDS:g} s: {self.last_words()}")

    def last_words(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]

    def stop(self) -> None:
        """SIGTERM to the server and then to what it leaves behind; SIGKILL for what stays."""
        tree = self._tree()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        left = {*tree, *self._tree()}
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with suppress(psutil.Error):
                    end(process)
            _, left = psutil.wait_procs(left, STOP_SECONDS)

    def _tree(self) -> list[psutil.Process]:
        """The processes of the server.

        What loses its parent becomes a child of ours (`stop_servers_when_ended`), so these are all
        that we have, but for those that were there before.
        """
        return [p for p in descendants(os.getpid()) if p not in self._others]


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


def stop_servers_when_ended() -> None:
    """Whoever ends this program has the servers ended, too.

    Processes whose parents have ended become our children, so that none gets lost.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, leave)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(root: int) -> list[psutil.Process]:
    """All of them, of a process that may have ended."""
    try:
        return psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
