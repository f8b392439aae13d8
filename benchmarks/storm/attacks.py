"""Attacks on a running server, one small function each, and what a polite client has to suffer.

To add one: write a function that harms once and says in a few words what became of it, and put it
into `ATTACKS` with the number of threads that repeat it. The attackers are a process of their own;
meanwhile h2load asks politely under another key, and this process asks for `/livez` and looks at
the server's memory.
"""

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image

from benchmarks.load import Figures, Request, arriving
from benchmarks.server import Server
from service.codecs.npy import encode_npy

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 10.0
POLITE_RATE = 20.0  # requests a second
LIVE_SECONDS = 0.05  # between two looks
MOST_BYTES = 32 << 20  # that an endless attack sends


@dataclass(frozen=True)
class Site:
    """Where to attack, by whose key, and until when (`time.monotonic`, which processes share)."""

    port: int
    key: str
    end: float

    def connect(self, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def head(self, path: str, *lines: str, method: str = "POST") -> bytes:
        own = (f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {self.key}")
        return "\r\n".join((*own, *lines, "", "")).encode()

    def told(self, request: bytes) -> str:
        """Send it all on a connection of its own: the status of the first answer."""
        with self.connect() as sock:
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request)  # it may be refused before it is read
            return status_of(sock)

    def post(self, path: str, kind: str, body: bytes, *lines: str) -> str:
        length = f"content-length: {len(body)}"
        return self.told(self.head(path, f"content-type: {kind}", length, *lines) + body)


def status_of(sock: socket.socket) -> str:
    """Of the next answer: three digits, or how the connection ended."""
    try:
        line = sock.recv(65536)
    except TimeoutError:
        return f"nothing for {TIMEOUT_SECONDS:g} s"
    except OSError:
        return "reset"
    return line[9:12].decode() if line else "closed"


# ------------------------------------------------------------------ the attacks


def upgrade_with_body(site: Site) -> str:
    """An upgrade to another protocol, whose body is another request."""
    smuggled = site.head("/v1/models", method="GET")
    lines = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk")
    first = site.head("/v1/score", *lines, f"content-length: {len(smuggled)}")
    with site.connect(timeout=1.0) as sock:
        sock.sendall(first + smuggled)
        answers = b""
        with suppress(OSError):
            while data := sock.recv(65536):
                answers += data
    statuses = [part[:3].decode() for part in answers.split(b"HTTP/1.1 ")[1:]]
    return f"answered {', '.join(statuses) or 'nothing'}"


def endless_head(site: Site) -> str:
    """Header lines without an end."""
    return _endless(site, site.head("/v1/sample")[:-2])


def endless_trailers(site: Site) -> str:
    """A body in chunks that is over, and lines after it without an end."""
    return _endless(site, site.head("/v1/sample", "transfer-encoding: chunked") + b"0\r\n")


def _endless(site: Site, start: bytes) -> str:
    lines = b"".join(b"x-%06d: %s\r\n" % (i, b"x" * 1000) for i in range(64))
    with site.connect() as sock:
        try:
            sock.sendall(start)
            for _ in range(MOST_BYTES // len(lines)):
                if time.monotonic() > site.end:
                    return "read until the end"
                sock.sendall(lines)
        except TimeoutError:
            return "no longer read"
        except OSError:
            return "cut off"
        return f"{MOST_BYTES >> 20} MiB were read"


def empty_scans(site: Site) -> str:
    """A progressive JPEG of a few kB, of which each of many empty scans is a pass over it all."""
    out = io.BytesIO()
    Image.new("L", (4000, 4000)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    body = data[:last] + data[last:-2] * 3000 + data[-2:]
    return site.post("/v1/score?resize=true", "image/jpeg", body)


def wide_png(site: Site) -> str:
    """A PNG of one row and millions of columns, to be resized."""
    out = io.BytesIO()
    Image.new("L", (1 << 23, 1)).save(out, "PNG")
    return site.post("/v1/score?resize=true", "image/png", out.getvalue())


def million_elements(site: Site) -> str:
    """A list of a million texts where images are wanted."""
    return site.post("/v1/score", "application/json", b'{"images": [%s""]}' % (b'"",' * 1_000_000))


def deep_json(site: Site) -> str:
    """Lists in lists in lists."""
    body = b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return site.post("/v1/score", "application/json", body)


def punycode_form(site: Site) -> str:
    """A form whose fields are in an encoding that is decoded in quadratic time."""
    text = b"a" * 30_000 + b"-" + b"b" * 30_000  # a field may have 64 kB
    part = b'--b\r\ncontent-disposition: form-data; name="seed"\r\n\r\n%s\r\n' % text
    kind = "multipart/form-data; boundary=b; charset=punycode"
    return site.post("/v1/score", kind, part * 4 + b"--b--\r\n")


def line_ends(site: Site) -> str:
    """A form whose one file is line ends, compressed."""
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n'
    body = _packed(part, b"\r\n", 15_000_000, b"\r\n--b--\r\n")
    return site.post("/v1/score", "multipart/form-data; boundary=b", body, "content-encoding: gzip")


def form_of_semicolons(site: Site) -> str:
    """A form of many files, whose heads are parameters without a name, compressed."""
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename=a'
    body = _packed(b"", part + b";" * 8000 + b"\r\n\r\nx\r\n", 1000, b"--b--")
    return site.post("/v1/score", "multipart/form-data; boundary=b", body, "content-encoding: gzip")


def long_numbers(site: Site) -> str:
    """Images that are numbers of thousands of digits, compressed."""
    body = _packed(b'{"images": [', b"9" * 4300 + b",", 7000, b"1]}")
    return site.post("/v1/score", "application/json", body, "content-encoding: gzip")


@cache
def _packed(head: bytes, unit: bytes, times: int, tail: bytes) -> bytes:
    """A body that is made once: it takes the attacker longer than the server."""
    return gzip.compress(head + unit * times + tail, 1)


def small_chunks(site: Site) -> str:
    """A body in hundreds of thousands of chunks of one byte."""
    lines = ("content-type: application/json", "transfer-encoding: chunked")
    return site.told(site.head("/v1/sample", *lines) + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n")


def half_open(site: Site) -> str:
    """Many connections that begin a request and leave it there."""
    with ExitStack() as held:
        try:
            for _ in range(200):
                sock = held.enter_context(site.connect())
                sock.sendall(site.head("/v1/score")[:-4])
        except OSError:
            return "refused after some of 200"
        time.sleep(1.0)
    return "held"


def pipelined_flood(site: Site) -> str:
    """Hundreds of requests at once on one connection, which then hangs up."""
    one = site.head("/v1/sample?n=4", "content-length: 0")
    with site.connect(timeout=1.0) as sock:
        try:
            sock.sendall(one * 500)
        except TimeoutError:
            return "no longer read"
        except OSError:
            return "cut off"
        return f"read; first {status_of(sock)}"


def slow_reader(site: Site) -> str:
    """A long stream that is read a few bytes at a time."""
    head = site.head("/v1/sample?n=1024", "accept: application/x-npy", "content-length: 0")
    with site.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(head)
        while time.monotonic() < site.end:
            if not sock.recv(16):
                return "cut off"
            time.sleep(0.05)
    return "served until the end"


def unread_answers(site: Site) -> str:
    """Large answers on many connections, of which nothing is read."""
    request = _black_images(site, "/v1/anomaly-map?maps=true", 256)
    with ExitStack() as held:
        while time.monotonic() < site.end:
            sock = held.enter_context(site.connect())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request)
            if (status := status_of(sock)) != "200":
                return status
    return "all computed"


def many_connections(site: Site) -> str:
    """One of many connections of one caller, which never rests."""
    return site.told(_black_images(site, "/v1/score?importance_samples=4", 64))


def _black_images(site: Site, path: str, count: int) -> bytes:
    body = encode_npy(np.zeros((count, 1, 28, 28), np.uint8))
    lines = ("content-type: application/x-npy", f"content-length: {len(body)}")
    return site.head(path, *lines) + body


ATTACKS: dict[str, tuple[Callable[[Site], str], int]] = {
    "upgrade with a body": (upgrade_with_body, 2),
    "endless head": (endless_head, 2),
    "endless trailers": (endless_trailers, 2),
    "JPEG of empty scans": (empty_scans, 2),
    "wide PNG": (wide_png, 2),
    "a million elements": (million_elements, 2),
    "deep JSON": (deep_json, 2),
    "punycode form": (punycode_form, 2),
    "form of line ends": (line_ends, 2),
    "form of semicolons": (form_of_semicolons, 2),
    "numbers of many digits": (long_numbers, 2),
    "chunks of a byte": (small_chunks, 2),
    "half-open connections": (half_open, 2),
    "pipelined flood": (pipelined_flood, 2),
    "slow readers": (slow_reader, 8),
    "unread answers": (unread_answers, 2),
    "64 connections of one caller": (many_connections, 64),
}


# ------------------------------------------------------------------ meanwhile


@dataclass
class Suffered:
    """What a server and its polite client had to suffer; outcomes: of the attack, by its words."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    live_seconds: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    polite: Figures = field(default_factory=dict)

    @property
    def live_p99_ms(self) -> float:
        return p99_ms(self.live_seconds)


def suffered(server: Server, name: str, key: str, polite: Request, seconds: float) -> Suffered:
    """One attack for `seconds`; an unknown name is none, for comparison."""
    found = Suffered(name, memory_mib=[server.resident_mib()])
    begins = time.monotonic() + 1.5  # a process takes its time
    site = Site(server.port, key, begins + seconds)
    told = map(str, (name, site.port, site.key, site.end))
    command = [sys.executable, "-m", "benchmarks.storm.attacks", *told]
    attacker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    asking = threading.Thread(
        target=lambda: found.polite.update(arriving(server, polite, POLITE_RATE, seconds))
    )
    time.sleep(max(0.0, begins - time.monotonic()))
    asking.start()
    while asking.is_alive() or time.monotonic() < site.end:
        began = time.monotonic()
        found.live_seconds.append(live(server.port))
        found.memory_mib.append(server.resident_mib())
        time.sleep(max(0.0, LIVE_SECONDS - (time.monotonic() - began)))
    asking.join()
    found.outcomes = Counter(json.loads(attacker.communicate()[0]))
    return found


def repeated(name: str, site: Site) -> Counter[str]:
    """Attack until the end, in as many threads as the attack has."""
    act, threads = ATTACKS.get(name, (lambda _site: "", 0))
    outcomes: Counter[str] = Counter()

    def repeat() -> None:
        while time.monotonic() < site.end:
            try:
                outcomes[act(site)] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1

    with ThreadPoolExecutor(threads or 1) as pool:
        runs = [pool.submit(repeat) for _ in range(threads)]
    for run in runs:
        run.result()  # an attack that failed is no attack
    return outcomes


def p99_ms(seconds: list[float]) -> float:
    return 1e3 * float(np.percentile(seconds, 99))


def live(port: int) -> float:
    """Seconds until `/livez` answered on a connection of its own; TIMEOUT_SECONDS if it did not."""
    began = time.monotonic()
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/livez", timeout=TIMEOUT_SECONDS):
        return time.monotonic() - began
    return TIMEOUT_SECONDS


if __name__ == "__main__":
    os.nice(19)  # the processor is the server's, as if the attackers were elsewhere
    attack, port, key, end = sys.argv[1:]
    print(json.dumps(repeated(attack, Site(int(port), key, float(end)))))
