"""Show on a machine with an NVIDIA GPU that the service and training are right and fast on it.

    python deploy/gpu_check.py [--minutes 15] [--json FILE] [--only SECTION ...]

One file, one command: from a checkout, or where the service is installed (with the extra `cuda`; in
the `cuda` image as /opt/iafvae/gpu_check.py). Training is checked where torch and `training` are.
A table, JSON where it is asked for, and exit code 0 where everything that is judged holds, 1 where
something does not, 3 where the time was over first. No section stops another one: each has a
process of its own, since what breaks a device stays with the process that did it, and half of the
time that is left, since what hangs would take all of it.

`--provider cpu` goes the same ways without a GPU: a rehearsal, whose figures are judged by
rightness alone. It is part of the tests; no GPU has run this file yet.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if importlib.util.find_spec("service") is None or "deploy" in Path(sys.path[0]).parts:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # a checkout

import service
from service.bundle import Bundle, load_bundle
from service.codecs.npy import encode_npy
from service.engine import cuda_engine
from service.engine.cuda_engine import CudaEngine
from service.engine.onnxruntime_engine import CPU, CUDA, Engine, gpu_problem
from service.engine.self_check import canary_problem, float32_problem, random_inputs
from service.errors import EngineFailure
from service.noise import Purpose, normal
from service.settings import SHIPPED_MODELS

SERVED, TRAINED = 0.9, 0.35  # of the bare graph; of the bfloat16 peak
CLIENTS = 8
GROUPS = hasattr(os, "killpg")
OUT_OF_MEMORY = RuntimeError("Failed to allocate memory for requested buffer of size 1 (injected)")
Arrays = dict[str, np.ndarray]
# Takes what memory a device has, in pieces of these sizes, and holds it.
HOG = """
import contextlib, sys, time
from service.engine.onnxruntime_engine import gpu_problem, placed_tensor
device, *sizes = map(int, sys.argv[1:])
gpu_problem(device)
taken = []
for size in sizes:
    with contextlib.suppress(Exception):
        while True:
            taken.append(placed_tensor((size,), "uint8", "cuda", device))
print("taken", flush=True)
time.sleep(3600)
"""


@dataclass
class Row:
    """One finding; `good` is None where nothing was wanted of it."""

    section: str
    what: str
    value: str
    wanted: str = ""
    good: bool | None = None


@dataclass
class Check:
    """What is checked, and what was found."""

    options: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    section: str = ""
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends = time.monotonic() + 60 * self.options.minutes
        self.gpu = self.options.provider == "cuda"
        # Asking also loads CUDA's libraries, which every section needs.
        self.problem = gpu_problem(self.options.device) if self.gpu else None

    @functools.cached_property
    def bundles(self) -> list[Bundle]:
        """Those that are asked for; one that cannot be read is a finding of who needs it."""
        return [load_bundle(path) for path in self.options.bundles]

    def found(self, what: str, value: object, wanted: str = "", good: bool | None = None) -> None:
        """Keep and print a finding."""
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        row = Row(self.section, what, shown, wanted, good)
        self.rows.append(row)
        mark = {None: "    ", True: "ok  ", False: "FAIL"}[good]
        print(f"{mark} {row.section:<9} {what:<46} {shown}  {wanted}", flush=True)

    def engine(self, bundle: Bundle, **options: Any) -> CudaEngine:
        """An engine on the device, not warm."""
        memory = "cuda" if self.gpu else "cpu"
        if not self.gpu:
            options = {"max_rows": 32, **options}
        return CudaEngine(bundle, memory=memory, device=self.options.device, **options)

    def rate(self, run: Callable[[], object], rows: int) -> float:
        """Rows a second of `run`, which computes so many."""
        run()
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < self.options.seconds:
            run()
            done += rows
        return done / spent


def inputs(bundle: Bundle, operation: str, sizes: dict[str, int], seed: int = 0) -> Arrays:
    """Random inputs of a graph."""
    return random_inputs(bundle.manifest.graphs[operation], sizes, seed)


def shapes(engine: CudaEngine, operation: str) -> list[dict[str, int]]:
    """All that a graph is prepared for."""
    graph = engine.bundle.manifest.graphs[operation]
    return engine.padding.shapes({str(t.shape[0]) for t in graph.inputs})  # type: ignore[attr-defined]


def bound(engine: CudaEngine, operation: str, shape: dict[str, int]) -> Any:
    """The session of a shape, with random inputs resident."""
    engine.run(operation, inputs(engine.bundle, operation, shape))
    return engine.bound[operation, tuple(shape[name] for name in sorted(shape))]


def resident(check: Check, engine: CudaEngine, operation: str, rows: int) -> float:
    """Rows a second of the bare graph on inputs that lie on the device, in batches of `rows`."""
    shape = next(s for s in shapes(engine, operation) if set(s.values()) == {rows})
    ready = bound(engine, operation, shape)
    return check.rate(lambda: engine._owner.submit(ready.compute).result(), rows)


# --- Sections -------------------------------------------------------------------------------------


def machine(check: Check) -> None:
    """Driver, device and libraries."""
    import onnxruntime as ort

    check.found("processor", f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    check.found("ONNX Runtime, its CUDA", f"{ort.__version__}, {ort.cuda_version or 'none'}")
    if check.gpu:
        usable = check.problem is None
        check.found("driver, device, libraries", check.problem or "usable", "usable", usable)
        names = "name,driver_version,memory.total,power.limit,compute_cap"
        check.found("device", smi(check, names) or "nvidia-smi is not here")


def placement(check: Check) -> None:
    """Every session of every graph: made with the CPU forbidden, asked for its providers."""
    for bundle in check.bundles:
        with closing(check.engine(bundle)) as engine:
            engine.warm()
            wanted = sum(len(shapes(engine, name)) for name in bundle.manifest.graphs)
            first = {made.session.get_providers()[0] for made in engine.bound.values()}
            good = len(engine.bound) == wanted and first == {CUDA if check.gpu else CPU}
            wholly = "every node" if check.gpu else "rehearsed"
            check.found(f"{bundle.manifest.name}: sessions", len(engine.bound), wholly, good)
            check.found(f"{bundle.manifest.name}: computed by", *first)


def parity(check: Check) -> None:
    """Each graph and bucket against the CPU provider; canaries were compared by `placement`."""
    for bundle in check.bundles:
        cpu = Engine(bundle, max_rows=4096, form="portable", threads=os.cpu_count() or 1)
        with closing(check.engine(bundle)) as engine:
            for operation in bundle.manifest.graphs:
                problems = []
                for shape in shapes(engine, operation):
                    given = inputs(bundle, operation, shape)
                    got, wanted = engine.run(operation, given), cpu.run(operation, given)
                    spec = bundle.manifest.canaries
                    problem = canary_problem(got, wanted, spec.rtol, spec.atol)
                    if problem := problem or float32_problem(got, wanted):
                        problems.append(f"{shape}: {problem}")
                value = "; ".join(problems) or "agrees"
                name = f"{bundle.manifest.name}: {operation}"
                check.found(name, value, "as float32", not problems)


def same_bytes(check: Check) -> None:
    """Run to run, in new sessions, and in one bucket alone and in company."""
    for bundle in check.bundles:
        turns = [answers(check, bundle) for _ in range(2)]
        name, wanted = bundle.manifest.name, turns[0][0]
        for what, got in (("run to run", turns[0][1]), ("in new sessions", turns[1][0])):
            for operation, arrays in wanted.items():
                same = all(np.array_equal(got[operation][k], arrays[k]) for k in arrays)
                check.found(f"{name}: {operation}, {what}", same, "True", same)
        with closing(check.engine(bundle, gpu_bucket=32)) as engine:
            engine.warm()
            says = engine.invariant
            check.found(f"{name}: one bucket, alone and in company", says, "True", says)


def answers(check: Check, bundle: Bundle) -> tuple[dict[str, Arrays], dict[str, Arrays]]:
    """Of each graph twice, with another batch in between, in sessions of their own."""
    first, second = {}, {}
    with closing(check.engine(bundle)) as engine:
        rows = engine.max_rows
        for operation in bundle.manifest.graphs:
            given = inputs(bundle, operation, {"N": rows, "R": rows})
            first[operation] = engine.run(operation, given)
            engine.run(operation, inputs(bundle, operation, {"N": rows, "R": rows}, seed=1))
            second[operation] = engine.run(operation, given)
    return first, second


def speed(check: Check) -> None:
    """Rows a second by bucket, one image's latency, and what noise and copies cost."""
    for bundle in check.bundles:
        name = bundle.manifest.name
        with closing(check.engine(bundle)) as engine:
            for operation in ("sample", "score"):
                for shape in shapes(engine, operation):
                    if len(set(shape.values())) == 1:
                        rows = next(iter(shape.values()))
                        rate = resident(check, engine, operation, rows)
                        check.found(f"{name}: {operation}, resident, rows/s at {rows}", rate)
                one = inputs(bundle, operation, {"N": 1, "R": 1})
                rate = check.rate(lambda o=operation, g=one: engine.run(o, g), 1)
                check.found(f"{name}: {operation}, one image, ms", 1e3 / rate)
            beside(check, engine)


def beside(check: Check, engine: CudaEngine) -> None:
    """What a batch of `sample` costs beside its computing."""
    rows, latent = engine.max_rows, engine.bundle.manifest.latent
    name, given = engine.bundle.manifest.name, inputs(engine.bundle, "sample", {"N": rows})
    streams = np.arange(rows, dtype=np.uint64)
    seconds = rows / resident(check, engine, "sample", rows)
    whole = rows / check.rate(lambda: engine.run("sample", given), rows)
    noise = rows / check.rate(lambda: normal(0, streams, 0, latent.dim, Purpose.SAMPLE), rows)
    check.found(f"{name}: copies and padding, of computing", (whole - seconds) / seconds)
    check.found(f"{name}: noise on one core, of computing", noise / seconds)


def tf32(check: Check) -> None:
    """What ten bits would gain, and that canaries notice them."""
    exact = cuda_engine.cuda_options
    for bundle in check.bundles:
        rates, noticed = {}, []
        for bits in ("0", "1"):
            cuda_engine.cuda_options = lambda d, b=bits: {**exact(d), "use_tf32": b}
            try:
                with closing(check.engine(bundle)) as engine:
                    rates[bits] = resident(check, engine, "sample", engine.max_rows)
                    for operation, canary in bundle.canaries.items():
                        problem = float32_problem(
                            engine.run(operation, canary["in"]), canary["out"]
                        )
                        noticed += [operation] if problem and bits == "1" else []
            finally:
                cuda_engine.cuda_options = exact
        name = bundle.manifest.name
        check.found(f"{name}: sample, TF32 over float32", rates["1"] / rates["0"])
        good = bool(noticed) if check.gpu else None
        check.found(f"{name}: canaries that notice it", ", ".join(noticed) or "none", "some", good)


def memory(check: Check) -> None:
    """Of the device, with one bundle's engine after another, and with none again."""
    before = smi(check, "memory.used")
    check.found("before, MiB", before or "not known")
    for bundle in check.bundles:
        with closing(check.engine(bundle)) as engine:
            engine.warm()
            check.found(f"{bundle.manifest.name}: warm, MiB", smi(check, "memory.used") or "-")
    check.found("afterwards, MiB", smi(check, "memory.used") or "-")


def faults(check: Check) -> None:
    """Out of memory: told (both kinds of machine), and met (a GPU): halved, and survived."""
    bundle = check.bundles[0]
    with closing(check.engine(bundle)) as engine:
        rows = engine.max_rows
        given = inputs(bundle, "sample", {"N": rows})
        wanted, compute = engine.run("sample", given), engine._compute

        def scarce(operation: str, feed: Arrays, shape: dict[str, int]) -> Any:
            if max(shape.values()) == rows:
                raise OUT_OF_MEMORY
            return compute(operation, feed, shape)

        engine._compute = scarce  # type: ignore[method-assign, assignment]
        halved = float32_problem(engine.run("sample", given), wanted) or "same answers"
        check.found("out of memory, injected", halved, "same answers", halved == "same answers")
    check.found("out of memory, met", *crowded(check, bundle, given, wanted))
    with closing(check.engine(bundle)) as engine:
        after = float32_problem(engine.run("sample", given), wanted) or "same answers"
        check.found("and afterwards", after, "same answers", after == "same answers")


def crowded(check: Check, bundle: Bundle, given: Arrays, wanted: Arrays) -> tuple[str, str, bool]:
    """What a run gives while nearly all memory of the device is taken."""
    try:
        with crowd(check), closing(check.engine(bundle)) as engine:
            problem = float32_problem(engine.run("sample", given), wanted)
        return problem or "same answers, in halves or not", "no fault", problem is None
    except EngineFailure as error:
        return f"refused: {str(error)[:60]}", "no fault of the device", True
    except Exception as error:  # noqa: BLE001 - a session that finds no memory is refused as well
        return f"{type(error).__name__}: {str(error)[:60]}", "out of memory", "memory" in str(error)


@contextlib.contextmanager
def crowd(check: Check) -> Iterator[None]:
    """Nearly all memory of the device taken, by a process that gives it back when it ends: ONNX
    Runtime keeps what a process has had. In a rehearsal nothing is taken."""
    sizes = [str(1 << power) for power in (30, 26, 22) if check.gpu]
    command = [sys.executable, "-c", HOG, str(check.options.device), *sizes]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    check.children.append(child)
    try:
        if not child.stdout or child.stdout.readline() != b"taken\n":
            raise RuntimeError("the process that takes memory has ended")
        yield
    finally:
        child.kill()
        child.communicate()


def environment(**given: str) -> dict[str, str]:
    """Of a process that imports the service that is checked, with these settings alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    root = str(Path(service.__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": paths, **given}


def served(check: Check) -> None:
    """Through HTTP against the bare graph; a hot swap and killed clients under load."""
    for bundle in check.bundles:
        with closing(check.engine(bundle)) as engine, Server(check, bundle) as server:
            name, rows = bundle.manifest.name, engine.max_rows
            for operation in ("sample", "score"):
                bare = resident(check, engine, operation, rows)
                rate, bad = server.load(operation, rows, 2 * check.options.seconds)
                good = rate / bare >= SERVED if check.gpu else None
                wanted = f">= {SERVED}" if check.gpu else ""
                check.found(f"{name}: {operation}, of the bare graph", rate / bare, wanted, good)
                check.found(f"{name}: {operation}, images/s", rate)
                check.found(f"{name}: {operation}, failed requests", bad, "0", bad == 0)
                latency = server.latency(operation, check.options.seconds)
                check.found(f"{name}: {operation}, one image, p50 ms", latency)
            check.found(f"{name}: hot swap under load", *server.swapped_under_load(rows))
            check.found(f"{name}: killed clients under load", *server.killed_under_load(rows))
            scarce = server.crowded_under_load(check, rows)
            check.found(f"{name}: out of memory under load", *scarce)


class Server:
    """`iafvae serve` on a copy of one bundle, in a process of its own."""

    def __init__(self, check: Check, bundle: Bundle) -> None:
        self._bundle, self._folder = bundle, Path(tempfile.mkdtemp(prefix="gpu-check-"))
        models = self._folder / "models"
        shutil.copytree(bundle.path, models / "a")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        given = {
            "IAFVAE_MODELS": str(models),
            "IAFVAE_PORT": str(self._port),
            "IAFVAE_HOST": "127.0.0.1",
            "IAFVAE_PROVIDER": check.options.provider,
            "IAFVAE_DEVICE": str(check.options.device),
            "IAFVAE_WATCH_SECONDS": "0.3",
            "IAFVAE_LOG_LEVEL": "warning",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from service.cli.main import main; main()", "serve"],
            env=environment(**given),
        )
        check.children.append(self._process)

    def __enter__(self) -> Server:
        while self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/readyz")[0] == 200:
                    return self
            time.sleep(0.1)
        raise RuntimeError(f"the service ended with {self._process.returncode}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(
        self, method: str, path: str, connection: Any = None, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str]]:
        """Status and headers of an answer."""
        used = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        used.request(method, path, body, named)
        answer = used.getresponse()
        answer.read()
        if connection is None:
            used.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}

    def question(self, operation: str, rows: int) -> dict[str, Any]:
        """Arguments of `ask` for so many images."""
        npy = {"accept": "application/x-npy"}
        if operation == "sample":
            body = json.dumps({"n": rows, "seed": 0}).encode()
            path, kind = "/v1/sample", "application/json"
        else:
            image = self._bundle.manifest.image
            pixels = np.random.default_rng(0).integers(0, 256, (rows, *image.shape), np.uint8)
            body, path = encode_npy(pixels), "/v1/score?importance_samples=1"
            kind = "application/x-npy"
        return {"method": "POST", "path": path, "body": body, "content_type": kind, **npy}

    def load(
        self, operation: str, rows: int, seconds: float, until: Callable[[], bool] | None = None
    ) -> tuple[float, int]:
        """Images a second over so many connections, and requests that failed."""
        question, counts, start = self.question(operation, rows), [0, 0], time.perf_counter()
        lock = threading.Lock()

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            while until() if until else time.perf_counter() - start < seconds:
                try:
                    good = self.ask(connection=connection, **question)[0] == 200
                except OSError:
                    good = False
                    connection.close()
                with lock:
                    counts[0 if good else 1] += 1
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return counts[0] * rows / (time.perf_counter() - start), counts[1]

    def latency(self, operation: str, seconds: float) -> float:
        """Median milliseconds of one image alone."""
        question, times, start = self.question(operation, 1), [], time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not times or time.perf_counter() - start < seconds:
            began = time.perf_counter()
            self.ask(connection=connection, **question)
            times.append(time.perf_counter() - began)
        connection.close()
        return 1e3 * statistics.median(times)

    def under_load(self, rows: int, act: Callable[[], str]) -> tuple[str, int]:
        """What `act` says, and how many requests of others failed meanwhile."""
        going, failed = threading.Event(), []
        going.set()

        def work() -> None:
            failed.append(self.load("score", rows, 0, going.is_set)[1])

        background = threading.Thread(target=work)
        background.start()
        try:
            said = act()
        finally:
            going.clear()
            background.join()
        return said, failed[0]

    def put(self, version: str) -> None:
        """Have the served directory hold another version of the bundle."""
        served, new = self._folder / "models" / "a", self._folder / "next"
        shutil.copytree(served, new)
        file = new / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"version": version}))
        served.rename(self._folder / f"before-{version}")
        new.rename(served)

    def serves(self, version: str) -> bool:
        """Whether that version answers."""
        return self.ask(**self.question("sample", 1))[1].get("x-iafvae-version") == version

    def refused(self) -> bool:
        """Whether a bundle could not be loaded."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self._port}/v1/models", timeout=120
        ) as said:
            return bool(json.load(said)["failed"])

    def swapped_under_load(self, rows: int) -> tuple[str, str, bool]:
        """Another version in the place of the first."""

        def swap() -> str:
            self.put("9999.0.0")
            return "swapped" if within(60, lambda: self.serves("9999.0.0")) else "not swapped"

        said, failed = self.under_load(rows, swap)
        return f"{said}, {failed} failed", "swapped, 0 failed", (said, failed) == ("swapped", 0)

    def killed_under_load(self, rows: int) -> tuple[str, str, bool]:
        """Clients that hang up on what they asked for."""

        def kill() -> str:
            question = self.question("sample", 4 * rows)
            head = (
                f"POST {question['path']} HTTP/1.1\r\nHost: x\r\nContent-Type:"
                f" {question['content_type']}\r\nContent-Length: {len(question['body'])}\r\n\r\n"
            )
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", self._port)) as connection:
                    connection.sendall(head.encode() + question["body"])
                    time.sleep(0.01)
            return "alive" if self.ask("GET", "/livez")[0] == 200 else "not alive"

        said, failed = self.under_load(rows, kill)
        return f"{said}, {failed} failed", "alive, 0 failed", (said, failed) == ("alive", 0)

    def crowded_under_load(self, check: Check, rows: int) -> tuple[str, str, bool]:
        """Memory that another process takes while a further version is to be loaded, for which
        there is none: what serves goes on, and the new one is loaded when there is room again. Who
        finds none meanwhile may be refused."""

        def take() -> str:
            with crowd(check):
                self.put("9999.0.1")
                within(60, lambda: self.serves("9999.0.1") or self.refused())
                found = "no room, then " if self.refused() else ""
            swapped = within(60, lambda: self.serves("9999.0.1"))
            alive = swapped and self.ask("GET", "/livez")[0] == 200
            return f"{found}swapped" if alive else f"{found}not alive and swapped"

        said, failed = self.under_load(rows, take)
        wanted = ("no room, then swapped", "swapped")  # the latter in a rehearsal
        return f"{said}, {failed} refused", wanted[not check.gpu], said in wanted


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something comes true in so many seconds; asked now and again."""
    ends = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
    return True


def training(check: Check) -> None:
    """Images a second of the named preset, and its share of the bfloat16 peak."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("training") is None:
        check.found("not checked", "torch or training is not here")
        return
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from training.config import Runtime, for_images, run_preset
    from training.data import ImageData
    from training.fit.trainer import Trainer
    from training.runs.directory import read_config

    named = Path(check.options.train)
    config = read_config(named) if named.is_dir() else run_preset(check.options.train)
    config = for_images(config, config.model.image_shape)
    batch = config.optim.batch_size
    shape = (max(512, 4 * batch), *config.model.image_shape)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    name = f"cuda:{check.options.device}" if check.gpu else "cpu"
    runtime = Runtime(device=name, compile="on" if check.gpu else "off")
    trainer = Trainer(config, runtime, ImageData(pixels, "random", "train"))
    for _ in range(5 if check.gpu else 1):
        trainer.train_step()
    minutes = min(check.options.train_minutes, (check.ends - time.monotonic()) / 60 - 0.5)
    steps, start = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - start < 60 * minutes:
        trainer.train_step()
        steps += 1
        if check.gpu:
            torch.cuda.synchronize()
    rate = steps * batch / (time.perf_counter() - start)
    check.found(f"{check.options.train}: images/s", rate)
    if not check.gpu:
        return
    plain = Trainer(
        config, Runtime(device=name, compile="off"), ImageData(pixels, "random", "train")
    )
    with FlopCounterMode(display=False) as counter:
        plain.train_step()
    flops = counter.get_total_flops() / batch
    a = torch.randn(8192, 8192, device=name, dtype=torch.bfloat16)
    torch.cuda.synchronize()

    def product() -> None:
        torch.mm(a, a)
        torch.cuda.synchronize()

    peak = check.rate(product, 1) * 2 * 8192**3
    share = rate * flops / peak
    check.found(f"{check.options.train}: GFLOP an image", flops / 1e9)
    check.found("bfloat16 peak, TFLOP/s", peak / 1e12)
    wanted = f">= {TRAINED}"
    check.found(f"{check.options.train}: of the peak", share, wanted, share >= TRAINED)


def smi(check: Check, names: str) -> str | None:
    """What nvidia-smi says of the device, or None."""
    if not check.gpu or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader,nounits"]
    shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    device = shown[check.options.device] if shown else check.options.device  # CUDA counts these
    done = subprocess.run([*command, f"--id={device}"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


SECTIONS: dict[str, Callable[[Check], None]] = {
    "machine": machine,
    "placement": placement,
    "parity": parity,
    "bytes": same_bytes,
    "speed": speed,
    "memory": memory,
    "faults": faults,
    "served": served,
    "tf32": tf32,
    "training": training,
}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = sorted(path.parent for path in SHIPPED_MODELS.glob("*/manifest.json"))
    parser.add_argument("--bundles", nargs="+", type=Path, default=shipped, metavar="DIR")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--device", type=int, default=0, help="which GPU, as CUDA counts them")
    parser.add_argument("--minutes", type=float, default=15.0, help="for everything (15)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--train", default="cifar10-paper", metavar="PRESET or RUN")
    parser.add_argument("--train-minutes", type=float, default=3.0, help="of training (3)")
    parser.add_argument("--json", type=Path, help="also write the findings here")
    return parser.parse_args(given)


def apart(check: Check, name: str, given: list[str], share: float) -> int:
    """A section in a process of its own, which has so much of the time that is left; gives its
    exit code. What it leaves behind is ended: a service, or who holds a device's memory."""
    ends = time.monotonic() + share * (check.ends - time.monotonic())
    # Whatever ends it, what it has put into temporary folders goes with this one.
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "found.json"
        minutes = (ends - time.monotonic() - 3) / 60  # it ends its own children first
        own = ["--only", name, "--minutes", f"{minutes:.4f}", "--json", str(out)]
        command = [sys.executable, __file__, *given, *own]
        own_place = {**os.environ, "TMPDIR": folder}
        child = subprocess.Popen(command, env=own_place, process_group=0 if GROUPS else -1)
        check.children.append(child)
        try:
            code = child.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = 3  # it hangs where its own timer does not run either
        finally:
            end(child)  # not waited for: what hangs in a driver may not even die
        try:
            check.rows += [Row(**row) for row in json.loads(out.read_text())["findings"]]
        except (OSError, ValueError):
            what = "out of time" if code == 3 else "could not be checked"
            check.found(what, f"its process ended with {code}", good=False)
            return max(code, 1)
    if code not in {0, 1, 3}:  # it had written all, and ended badly nevertheless
        check.found("could not be checked", f"its process ended with {code}", good=False)
        return 1
    return code


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process, and those of its group where it has one."""
    if GROUPS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()


def here(check: Check, name: str) -> int:
    """A section in this process; gives its exit code."""
    try:
        SECTIONS[name](check)
    except Exception as error:  # noqa: BLE001 - it is a finding
        text = f"{type(error).__name__}: {error}"
        check.found("could not be checked", text[:300], "", good=False)
    return int(any(row.good is False for row in check.rows))


def written(check: Check, code: int) -> int:
    """Say how it ended, and write the JSON."""
    failed = [row for row in check.rows if row.good is False]
    judged = sum(row.good is not None for row in check.rows)
    print(f"{judged - len(failed)} of {judged} hold, exit code {code}", flush=True)
    if check.options.json:
        document = {
            "provider": check.options.provider,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "exit_code": code,
            "findings": [asdict(row) for row in check.rows],
        }
        check.options.json.write_text(json.dumps(document, indent=1) + "\n")
    return code


def main(given: list[str] | None = None) -> int:
    """Run the sections; gives the exit code."""
    given = sys.argv[1:] if given is None else given
    check = Check(arguments(given))

    def out_of_time() -> None:
        try:
            check.found("out of time", f"{check.options.minutes:g} minutes", "", good=False)
            for child in check.children:
                end(child)
            written(check, 3)
        finally:
            os._exit(3)  # whatever hangs

    watch = threading.Timer(60 * check.options.minutes, out_of_time)
    watch.daemon = True
    watch.start()
    alone, code = len(check.options.only) == 1, 0
    for name in check.options.only:
        check.section = name
        share = 1.0 if name == check.options.only[-1] else 0.5  # the others are to have some, too
        code = max(code, here(check, name) if alone else apart(check, name, given, share))
    watch.cancel()
    return written(check, code)


if __name__ == "__main__":
    raise SystemExit(main())
