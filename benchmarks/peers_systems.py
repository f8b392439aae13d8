"""What is measured: this service and its peers, each as its own documentation sets it up.

Each peer is an application in `peers/`, of which it starts as many one-thread workers as there are
cores, with batching on; sizes and waits were tried, and the quickest kept. Batches of all of them
are at least 32 images.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers_env import FOLDER, Environment, quiet_variables
from benchmarks.peers_graph import GRAPH_VARIABLE, ScoreGraph
from benchmarks.peers_process import Server, free_ports, serving
from benchmarks.peers_protocols import (
    Images,
    Protocol,
    json_base64,
    json_png,
    npy,
    raw_bytes,
    v2_base64,
    v2_binary,
)
from benchmarks.peers_report import OURS
from service.bundle import Bundle
from service.noise import Purpose, image_keys, normal

ROOT = Path(__file__).resolve().parent.parent
SERVE = [sys.executable, "-c", "from service.cli import main; main()", "serve"]


@dataclass(frozen=True, kw_only=True)
class System:
    """One server. command: of its interpreter, a port and another one; ready: answers 200 when it
    is."""

    name: str
    protocols: tuple[Protocol, ...]
    command: Callable[[str, int, int], list[str]]
    ready: str
    expected: Callable[[ScoreGraph, Images], NDArray[np.float32]]
    environment: Environment | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def version(self) -> str:
        """The package and its version."""
        return self.environment.version() if self.environment else "as it is here"

    @contextmanager
    def running(self, bundle: Bundle, python: Path | str = sys.executable) -> Iterator[Server]:
        """A server of `bundle`. Raises ServerError."""
        port, other = free_ports(2)
        with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
            home = Path(folder)
            if self.environment is None:
                kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
                given = {"MODELS": str(bundle.path.resolve()), "PORT": str(port)}
                variables = kept | {f"IAFVAE_{k}": v for k, v in given.items()}
            else:
                graph = bundle.path / bundle.manifest.graphs["score"].cpu
                variables = quiet_variables(home) | {GRAPH_VARIABLE: str(graph.resolve())}
            command = self.command(str(python), port, other)
            directory = ROOT if self.environment is None else home  # some write where they are
            everything = {**variables, **self.variables}
            log = home / "output"
            with serving(command, port, self.ready, everything, directory, log) as server:
                yield server


def service(bundle: Bundle, **settings: object) -> System:
    """This service; settings: of ``IAFVAE_*``, beside its defaults."""
    manifest = bundle.manifest
    given = {"provider": "cpu", "log_level": "warning", **settings}

    def expected(graph: ScoreGraph, images: Images) -> NDArray[np.float32]:
        keys, dim = image_keys(images), manifest.latent.dim
        eps = normal(0, keys, 0, dim, Purpose.IMAGE)
        return graph(images, eps)

    return System(
        name=OURS,
        protocols=(
            npy(),
            json_png(),
            v2_binary(f"{manifest.name}.score", "log_likelihood_nats", {"importance_samples": 1}),
        ),
        command=lambda _python, _port, _other: SERVE,
        ready="/readyz",
        expected=expected,
        variables={f"IAFVAE_{k.upper()}": str(v) for k, v in given.items()},
    )


def _with_fixed_noise(graph: ScoreGraph, images: Images) -> NDArray[np.float32]:
    return graph(images)


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
        expected=_with_fixed_noise,
        environment=Environment("triton", "/usr/bin/python3"),
    ),
    System(
        name="LitServe",
        protocols=(json_base64("/predict", one_text=True),),
        command=_application("litserve_app.py"),
        ready="/health",
        expected=_with_fixed_noise,
        environment=Environment("litserve"),
    ),
    System(
        name="BentoML",
        protocols=(json_base64("/score", one_text=False),),
        command=_bentoml,
        ready="/readyz",
        expected=_with_fixed_noise,
        environment=Environment("bentoml"),
    ),
    System(
        name="MLServer",
        protocols=(v2_base64("score"),),
        command=_application("mlserver_main.py"),
        ready="/v2/models/score/ready",
        expected=_with_fixed_noise,
        environment=Environment("mlserver"),
    ),
    System(
        name="Ray Serve",
        protocols=(raw_bytes("/"),),
        command=_application("ray_app.py"),
        ready="/-/healthz",
        expected=_with_fixed_noise,
        environment=Environment("ray"),
        # What its documentation offers for throughput, but HAProxy, which listens everywhere.
        variables={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    ),
)
