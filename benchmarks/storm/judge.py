"""What the chaos test asks, and what the bare graphs say the answers are.

Each request's answer is computed by ONNX Runtime on the files of the bundle, with the noise that
the request's seed means, and by nothing else of the service. All images are black and white: no
model rounds such pixels.
"""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.score_graph import graph_file, session
from service.bundle import load_bundle
from service.codecs.npy import encode_npy
from service.estimators import estimate
from service.noise import Purpose, image_keys, normal

NPY = "application/x-npy"
GRAPHS = ("sample", "decode", "encode", "score")
TOLERANCE = 1e-4  # of floats, relative and absolute; a pixel's mean may round to its neighbour
Array = NDArray[Any]


class BareGraphs:
    """A bundle's graphs without the service."""

    def __init__(self, path: Path) -> None:
        self.hash = load_bundle(path).hash
        self._sessions = {name: session(graph_file(path, name)) for name in GRAPHS}

    def sample(self, seeds: Array, streams: Array) -> Array:
        """The mean as pixels, uint8 ``[n, C, H, W]``."""
        eps = self._normal("sample", seeds, streams, 0, Purpose.SAMPLE)
        ones = np.ones((len(seeds), self._width("sample", "temperature")), np.float32)
        return _pixels(self._run("sample", eps=eps, temperature=ones)["mean"])

    def score(self, images: Array, samples: int, seed: int) -> Array:
        """Log-likelihoods in nats, float32 ``[n]``."""
        owner = np.repeat(np.arange(len(images), dtype=np.int64), samples)
        draws = np.tile(np.arange(samples, dtype=np.uint64), len(images))
        seeds = np.full(len(owner), seed, np.uint64)
        eps = self._normal("score", seeds, image_keys(images)[owner], draws, Purpose.IMAGE)
        weights = self._run("score", image=images, owner=owner, eps=eps)["log_weight"]
        found = estimate(weights.reshape(len(images), samples))
        return found.log_likelihood_nats.astype(np.float32)

    def encode(self, images: Array, seed: int | None = None) -> Array:
        """Latents, float32 ``[n, D]``; without a seed at eps = 0."""
        eps = np.zeros((len(images), self._width("encode", "eps")), np.float32)
        if seed is not None:
            seeds = np.full(len(images), seed, np.uint64)
            eps = self._normal("encode", seeds, image_keys(images), 0, Purpose.IMAGE)
        return self._run("encode", image=images, eps=eps)["z"]

    def reconstruct(self, images: Array) -> Array:
        """As `sample`."""
        return _pixels(self._run("decode", z=self.encode(images))["mean"])

    def _normal(
        self, graph: str, seeds: Array, streams: Array, draws: Any, purpose: Purpose
    ) -> Array:
        return normal(seeds, streams, draws, self._width(graph, "eps"), purpose)

    def _width(self, graph: str, name: str) -> int:
        shapes = {value.name: value.shape for value in self._sessions[graph].get_inputs()}
        return int(shapes[name][1])

    def _run(self, graph: str, **given: Array) -> dict[str, Array]:
        """Outputs by name. Uniform noise is of no consequence: the mean needs none, and images are
        black and white."""
        opened, rows = self._sessions[graph], len(next(iter(given.values())))
        for value in opened.get_inputs():
            if value.name not in given:
                given[value.name] = np.full((rows, *value.shape[1:]), 0.5, np.float32)
        names = [value.name for value in opened.get_outputs()]
        return dict(zip(names, opened.run(names, given), strict=True))


def _pixels(mean: Array) -> Array:
    return np.rint(mean * np.float32(255.0)).astype(np.uint8)


@dataclass(frozen=True)
class Ask:
    """One request that has a right answer. `path` has ``{model}`` in it.

    read: the array in an answer's body; streamed: the answer is computed while it is sent.
    """

    name: str
    path: str
    body: bytes
    right: Callable[[BareGraphs], Array]
    read: Callable[[bytes], Array] = lambda body: np.load(io.BytesIO(body))
    streamed: bool = False
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": NPY, "accept": NPY})


def asks(shape: tuple[int, ...], *, streamed: int) -> list[Ask]:
    """Small and large requests to every operation and both protocols.

    shape: of an image, ``(C, H, W)``; streamed: images of the answer that is a stream.
    """
    images = 255 * np.random.default_rng(5).integers(0, 2, (64, *shape), np.uint8)
    few, one = images[:6], images[:1]
    ask = [
        _sample(1, seed=11),
        _sample(7, seed=3),
        _sample(streamed, seed=2, streamed=True),
        _of_images("encode", few, "&seed=4", 4),
        _of_images("reconstruct", few),
        _infer(np.array([5, 6, 7], np.uint64)),
    ]
    for given, samples in ((one, 1), (few, 16), (images, 16)):
        query = f"&importance_samples={samples}&seed=1"
        ask.append(_of_images("score", given, query, samples, 1))
    return ask


def _of_images(operation: str, images: Array, query: str = "", *options: int) -> Ask:
    """options: of the method of `BareGraphs` that knows the answer."""
    path = f"/v1/{operation}?model={{model}}{query}"
    right = methodcaller(operation, images, *options)
    return Ask(f"{operation} {len(images)} {query}", path, encode_npy(images), right)


def _sample(n: int, *, seed: int, streamed: bool = False) -> Ask:
    seeds, streams = np.full(n, seed, np.uint64), np.arange(n, dtype=np.uint64)
    name = f"{'stream' if streamed else 'sample'} {n}"
    path = f"/v1/sample?seed={seed}&n={n}&model={{model}}"
    right = methodcaller("sample", seeds, streams)
    return Ask(name, path, b"", right, streamed=streamed, headers={"accept": NPY})


def _infer(seeds: Array) -> Ask:
    document = {
        "inputs": [
            {"name": "seed", "datatype": "INT64", "shape": [len(seeds)], "data": seeds.tolist()}
        ],
        "outputs": [{"name": "image"}],
    }

    def read(body: bytes) -> Array:
        output = json.loads(body)["outputs"][0]
        return np.array(output["data"], np.uint8).reshape(output["shape"])

    return Ask(
        "infer sample",
        "/v2/models/{model}.sample/infer",
        json.dumps(document).encode(),
        methodcaller("sample", seeds, np.zeros(len(seeds), np.uint64)),
        read,
        headers={"content-type": "application/json"},
    )


class Judge:
    """Knows the right answer of every request for every bundle."""

    def __init__(self, bundles: Iterable[Path], asked: Iterable[Ask]) -> None:
        self._right: dict[tuple[str, str], Array] = {}
        self._bytes: dict[tuple[str, str], bytes] = {}
        known = list(asked)
        for path in bundles:
            bare = BareGraphs(path)
            self._right |= {(bare.hash, ask.name): ask.right(bare) for ask in known}

    def problem(self, ask: Ask, bundle: str, body: bytes) -> str | None:
        """What is wrong with the answer of `bundle` to `ask`: its numbers, or that its bytes were
        others before."""
        key = bundle, ask.name
        right = self._right.get(key)
        if right is None:
            return f"{ask.name}: answered by {bundle!r}, which nobody has put there"
        try:
            got = ask.read(body)
        except (ValueError, KeyError, IndexError, EOFError) as error:
            return f"{ask.name}: the answer cannot be read ({error})"
        if got.dtype != right.dtype or got.shape != right.shape:
            return f"{ask.name}: {got.dtype}{got.shape} instead of {right.dtype}{right.shape}"
        slack = 1.0 if got.dtype == np.uint8 else TOLERANCE
        numbers, wanted = got.astype(np.float64), right.astype(np.float64)
        if not np.allclose(numbers, wanted, rtol=TOLERANCE, atol=slack):
            return f"{ask.name}: not what the bare graph of {bundle[:12]} computes"
        if self._bytes.setdefault(key, got.tobytes()) != got.tobytes():
            return f"{ask.name}: other bytes than before by the same bundle {bundle[:12]}"
        return None
