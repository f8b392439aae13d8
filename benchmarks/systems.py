"""What is measured: this service and its peers, each as its own documentation sets it up.

A protocol says how images go in and log-likelihoods come out. Each peer is an application in
`peers/`, of which it starts as many one-thread workers as there are cores, with batching on; sizes
and waits were tried, and the quickest kept. Batches of all of them are at least 32 images.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load import Request
from benchmarks.score_graph import GRAPH_VARIABLE, Images, ScoreGraph, graph_file
from benchmarks.server import Server, free_ports, serving
from service.codecs.npy import encode_npy

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "peers"
SHIPPED = ROOT / "service" / "bundles"
OURS = "this service"
NPY = "application/x-npy"
INSTALL_SECONDS = 1800
BINARY_LENGTH = "inference-header-content-length"
RELATIVE, ABSOLUTE = 1e-4, 1e-2  # between an answer and the graph's, in nats
STANDARD_ERRORS = 6.0  # between two means with different noise

Numbers = NDArray[np.float32]  # [n]


class WrongAnswerError(Exception):
    """A server whose answers are not those of the graph."""


class CannotInstall(Exception):  # noqa: N818 - read as a sentence
    """Why a peer is not among the results."""


# ------------------------------------------------------------------ protocols


@dataclass(frozen=True)
class Protocol:
    """How images go in and log-likelihoods in nats come out."""

    name: str
    path: str
    headers: Mapping[str, str]
    encode: Callable[[Images], tuple[bytes, dict[str, str]]]  # a body, and headers of its own
    scores: Callable[[httpx.Response], Numbers]

    def request(self, images: Images) -> Request:
        body, headers = self.encode(images)
        return Request(self.path, body, {**self.headers, **headers}, len(images))


def npy(path: str = "/v1/score?importance_samples=1") -> Protocol:
    """Arrays both ways."""

    return Protocol(
        "npy",
        path,
        {"content-type": NPY, "accept": NPY},
        lambda images: (encode_npy(images), {}),
        lambda answer: _floats(np.load(io.BytesIO(answer.content))),
    )


def json_png() -> Protocol:
    """Base64 of a PNG an image, and all results as JSON."""

    def encode(images: Images) -> tuple[bytes, dict[str, str]]:
        pngs = [_base64(_png(image)) for image in images]
        return json.dumps({"images": pngs, "importance_samples": 1}).encode(), {}

    def scores(answer: httpx.Response) -> Numbers:
        return _floats([result["log_likelihood_nats"] for result in answer.json()["results"]])

    headers = {"content-type": "application/json", "accept": "application/json"}
    return Protocol("JSON, PNG", "/v1/score", headers, encode, scores)


def v2_binary(model: str, output: str, parameters: dict[str, Any]) -> Protocol:
    """Open Inference Protocol, tensors in binary both ways."""

    def encode(images: Images) -> tuple[bytes, dict[str, str]]:
        size = {"binary_data_size": images.nbytes}
        head: dict[str, Any] = {
            "inputs": [
                {"name": "image", "shape": images.shape, "datatype": "UINT8", "parameters": size}
            ],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
        if parameters:
            head["parameters"] = parameters
        text = json.dumps(head).encode()
        return text + images.tobytes(), {BINARY_LENGTH: str(len(text))}

    def scores(answer: httpx.Response) -> Numbers:
        return np.frombuffer(answer.content[int(answer.headers[BINARY_LENGTH]) :], "<f4")

    headers = {"content-type": "application/octet-stream"}
    return Protocol("v2 binary", f"/v2/models/{model}/infer", headers, encode, scores)


def v2_base64(model: str) -> Protocol:
    """Open Inference Protocol as JSON, an image as the base64 of its bytes."""

    def encode(images: Images) -> tuple[bytes, dict[str, str]]:
        tensor = {
            "name": "image",
            "shape": [len(images), 1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [_base64(image.tobytes()) for image in images],
        }
        return json.dumps({"inputs": [tensor]}).encode(), {}

    def scores(answer: httpx.Response) -> Numbers:
        return _floats(answer.json()["outputs"][0]["data"])

    headers = {"content-type": "application/json"}
    return Protocol("v2 JSON, base64", f"/v2/models/{model}/infer", headers, encode, scores)


def raw_bytes(path: str) -> Protocol:
    """Pixels in, float32 out."""
    headers = {"content-type": "application/octet-stream"}
    return Protocol(
        "bytes",
        path,
        headers,
        lambda images: (images.tobytes(), {}),
        lambda answer: np.frombuffer(answer.content, "<f4"),
    )


def json_base64(path: str, *, one_text: bool) -> Protocol:
    """Base64 of the pixels in JSON: of all images together, or one text an image."""

    def encode(images: Images) -> tuple[bytes, dict[str, str]]:
        texts = [_base64(image.tobytes()) for image in images]
        body = {"images": _base64(images.tobytes()) if one_text else texts}
        return json.dumps(body).encode(), {}

    def scores(answer: httpx.Response) -> Numbers:
        found = answer.json()
        return _floats(found["scores"] if isinstance(found, dict) else found)

    return Protocol("JSON, base64", path, {"content-type": "application/json"}, encode, scores)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _png(image: Images) -> bytes:
    out = io.BytesIO()
    planes = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
    Image.fromarray(planes).save(out, "PNG")
    return out.getvalue()


def _floats(values: Any) -> Numbers:
    return np.asarray(values, np.float32).reshape(-1)


# ------------------------------------------------------------------ environments of peers


@dataclass(frozen=True)
class Environment:
    """A peer's virtual environment with what `peers/NAME.txt` pins; python: what makes it, by
    default what runs this."""

    name: str
    python: str | None = None

    @property
    def requirements(self) -> Path:
        return FOLDER / f"{self.name}.txt"

    def version(self) -> str:
        """Of the peer itself: the first line that pins."""
        lines = self.requirements.read_text().splitlines()
        return next(line for line in lines if "==" in line).split()[0]

    def make(self, envs: Path) -> Path:
        """Its interpreter, after everything was installed. Raises CannotInstall."""
        home = envs / self.name
        python, stamp = home / "bin" / "python", home / "complete"
        wanted = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        maker = self.python or str(getattr(sys, "_base_executable", sys.executable))
        if shutil.which(maker) is None:
            raise CannotInstall(f"there is no {maker}, which {self.name} needs")
        print(f"installing {self.name} in {home}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        envs.mkdir(parents=True, exist_ok=True)
        _install([maker, "-m", "venv", str(home)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _install([*pip, "--requirement", str(self.requirements)])
        stamp.write_text(wanted)
        return python


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"not installed after {INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise CannotInstall(lines[-1].strip()[-300:] or f"exit {done.returncode}")


def quiet_variables(home: Path) -> dict[str, str]:
    """What a peer's process gets: no reports to its makers, nothing written into our home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home / "bentoml"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
    }


# ------------------------------------------------------------------ systems


@dataclass(frozen=True, kw_only=True)
class System:
    """One server. command: of its interpreter, a port and another one; ready: answers 200 when it
    is; environment None: this service."""

    name: str
    protocols: tuple[Protocol, ...]
    command: Callable[[str, int, int], list[str]]
    ready: str
    environment: Environment | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self, bundle: Path, python: Path | str = sys.executable) -> Iterator[Server]:
        port, other = free_ports(2)
        with tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True) as folder:
            home = Path(folder)
            if self.environment is None:
                kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
                variables = kept | {"IAFVAE_MODELS": str(bundle.resolve())}
            else:
                graph = str(graph_file(bundle, "score"))
                variables = quiet_variables(home) | {GRAPH_VARIABLE: graph}
            command = self.command(str(python), port, other)
            directory = ROOT if self.environment is None else home  # some write where they are
            everything = {**variables, **self.variables}
            log = home / "output"
            with serving(command, port, self.ready, everything, directory, log) as server:
                yield server

    def check(self, server: Server, graph: ScoreGraph, images: Images) -> None:
        """Compare a server's answers with the graph's. Raises WrongAnswerError.

        Peers have the graph's own noise. The service has its noise of each image: all its protocols
        have to give the same numbers, whose mean is the graph's but for chance.
        """
        wanted, first = graph(images), None
        for protocol in self.protocols:
            got = np.concatenate(
                [ask(server.port, protocol, part) for part in (images[:1], images)]
            )
            whole = got[1:]
            if self.environment is not None:
                expected = np.concatenate([wanted[:1], wanted])
            else:
                first = got if first is None else first
                expected = first
                error = np.std(whole - wanted) / len(images) ** 0.5
                if abs(np.mean(whole - wanted)) > STANDARD_ERRORS * error + ABSOLUTE:
                    raise WrongAnswerError(f"the mean is {whole.mean()}, not {wanted.mean()}")
            if got.shape != expected.shape or not np.allclose(got, expected, RELATIVE, ABSOLUTE):
                raise WrongAnswerError(f"{protocol.name}: {got[:4]}, not {expected[:4]}")


def ask(port: int, protocol: Protocol, images: Images) -> Numbers:
    """The scores that one request gets. Raises WrongAnswerError where none can be read."""
    request = protocol.request(images)
    url = f"http://127.0.0.1:{port}{request.path}"
    try:
        answer = httpx.post(url, content=request.body, headers=dict(request.headers), timeout=30)
        if answer.status_code == 200:
            return protocol.scores(answer)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, EOFError) as error:
        raise WrongAnswerError(f"{protocol.name}: {type(error).__name__}: {error}") from None
    raise WrongAnswerError(f"{protocol.name}: {answer.status_code} {answer.text[:300]}")


def service(bundle: Path, **settings: object) -> System:
    """This service, of this checkout; settings: of ``IAFVAE_*``, beside its defaults."""
    name = json.loads((bundle / "manifest.json").read_text())["name"]
    given = {"provider": "cpu", "log_level": "warning", "default_model": name, **settings}
    main = "from service.cli.main import main; main()"  # the checkout's, not what is installed
    return System(
        name=OURS,
        protocols=(
            npy(),
            v2_binary(f"{name}.score", "log_likelihood_nats", {"importance_samples": 1}),
            json_png(),
        ),
        command=lambda python, port, _: [python, "-c", main, "serve", "--port", str(port)],
        ready="/readyz",
        variables={f"IAFVAE_{k.upper()}": str(v) for k, v in given.items()},
    )


def _application(file: str) -> Callable[[str, int, int], list[str]]:
    return lambda python, port, other: [python, str(FOLDER / file), str(port), str(other)]


def _bentoml(python: str, port: int, _other: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(FOLDER)]
    return [python, "-m", "bentoml", "serve", "--quiet", "bentoml_app:Scores", *where]


PEERS = (
    System(
        name="Triton",
        protocols=(v2_binary("score", "log_weight", {}),),
        command=_application("triton_app.py"),
        ready="/v2/models/score/ready",
        environment=Environment("triton", "/usr/bin/python3"),  # PyTriton wants Debian's own
    ),
    System(
        name="LitServe",
        protocols=(json_base64("/predict", one_text=True),),
        command=_application("litserve_app.py"),
        ready="/health",
        environment=Environment("litserve"),
    ),
    System(
        name="BentoML",
        protocols=(json_base64("/score", one_text=False),),
        command=_bentoml,
        ready="/readyz",
        environment=Environment("bentoml"),
    ),
    System(
        name="MLServer",
        protocols=(v2_base64("score"),),
        command=_application("mlserver_main.py"),
        ready="/v2/models/score/ready",
        environment=Environment("mlserver"),
    ),
    System(
        name="Ray Serve",
        protocols=(raw_bytes("/"),),
        command=_application("ray_app.py"),
        ready="/-/healthz",
        environment=Environment("ray"),
        # What its documentation offers for throughput, but HAProxy, which listens everywhere.
        variables={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    ),
)
