"""The graph that everybody serves: `score` of a bundle at K = 1, alone and as much as it can.

Imported by the peers' applications, too, each in its own environment: NumPy and ONNX Runtime alone.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
import onnxruntime as ort

GRAPH_VARIABLE = "PEER_GRAPH"  # where a peer's application finds the graph
FORMS = ("cpu", "portable", ".")  # where a bundle's graphs are, the best for a CPU first

Images = NDArray[np.uint8]  # [n, C, H, W]


def graph_file(bundle: Path, operation: str) -> Path:
    """The graph of an operation that a CPU runs. Raises FileNotFoundError."""
    for form in FORMS:
        path = bundle.resolve() / form / f"{operation}.onnx"
        if path.is_file():
            return path
    raise FileNotFoundError(f"{bundle} has no graph of {operation!r}")


def session(
    model: Path | str, profile: str | None = None, weights: Path | None = None
) -> ort.InferenceSession:
    """A one-thread session with the service's options; profile: the prefix of a profile; weights:
    the file of a graph that does not lie beside it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # as in the service's engine, for ragged batches
    options.log_severity_level = 3
    content: bytes | str = str(model)
    if weights is not None:
        blob = weights.read_bytes()
        options.add_external_initializers_from_files_in_memory([weights.name], [blob], [len(blob)])
        content = Path(model).read_bytes()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(content, options, ["CPUExecutionProvider"])


class ScoreGraph:
    """log p(x, z) - log q(z | x) of images, one draw of z each, on one thread.

    Every image gets the same draw of the noise, made once: it costs nothing, and answers do not
    depend on their batches.
    """

    def __init__(self, path: Path | str) -> None:
        self._session = session(path)
        shapes = {value.name: value.shape[1:] for value in self._session.get_inputs()}
        self.image_shape: tuple[int, ...] = tuple(shapes["image"])
        rng = np.random.default_rng(0)
        self._noise = {"eps": rng.standard_normal((1, shapes["eps"][0]), np.float32)}
        if "u_image" in shapes:  # binarises grey pixels
            self._noise["u_image"] = rng.random((1, *shapes["u_image"]), np.float32)

    @classmethod
    def given(cls) -> ScoreGraph:
        """The graph that the environment names."""
        return cls(os.environ[GRAPH_VARIABLE])

    def images(self, pixels: bytes) -> Images:
        """Images uint8 ``[n, C, H, W]`` of their bytes."""
        return np.frombuffer(pixels, np.uint8).reshape(-1, *self.image_shape)

    def feed(self, images: Images) -> dict[str, Any]:
        n = len(images)
        noise = {name: np.repeat(row, n, axis=0) for name, row in self._noise.items()}
        return {"image": images, "owner": np.arange(n), **noise}

    def run(self, feed: dict[str, Any]) -> NDArray[np.float32]:
        """Nats, float32 ``[n]``."""
        scores: NDArray[np.float32] = self._session.run(["log_weight"], feed)[0]
        return scores

    def __call__(self, images: Images) -> NDArray[np.float32]:
        return self.run(self.feed(images))


def drawn_images(bundle: Path, count: int) -> Images:
    """Images like those that the model was trained on, drawn from it: uint8 ``[count, C, H, W]``.

    Noise would compress badly, and so make requests of PNGs larger than people's are.
    """
    opened = session(graph_file(bundle, "sample"))
    mean = opened.run(["mean"], sample_inputs(opened, count, np.random.default_rng(0)))[0]
    manifest = json.loads((bundle / "manifest.json").read_text())
    if manifest["likelihood"]["kind"] == "bernoulli":  # trained on black and white pixels
        mean = mean > 0.5
    return np.ascontiguousarray(np.rint(255.0 * mean).astype(np.uint8))


def sample_inputs(
    opened: ort.InferenceSession, count: int, rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Inputs of the `sample` graph, at temperature 1."""
    width = {value.name: value.shape[1] for value in opened.get_inputs()}
    return {
        "eps": rng.standard_normal((count, width["eps"]), np.float32),
        "temperature": np.ones((count, width["temperature"]), np.float32),
        "u": rng.random((count, width["u"]), np.float32),
    }


def bare(graph: ScoreGraph, images: Images, callers: int, seconds: float) -> dict[str, float]:
    """`callers` threads, each computing `images` again and again on one thread of its own.

    Gives images_per_second, cpu_us (of the processor, an image) and p50_ms of a call.
    """
    feed = graph.feed(images)
    for _ in range(3):
        graph.run(feed)
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(callers) as pool:
        runs = [pool.submit(_call, graph, feed, start + seconds) for _ in range(callers)]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    times = [each for run in runs for each in run.result()]
    count = len(times) * len(images)
    return {
        "images_per_second": count / wall,
        "cpu_us": 1e6 * cpu / count,
        "p50_ms": 1e3 * float(np.median(times)),
    }


def _call(graph: ScoreGraph, feed: dict[str, Any], end: float) -> list[float]:
    times: list[float] = []
    now = time.perf_counter()
    while not times or now < end:
        began = now
        graph.run(feed)
        now = time.perf_counter()
        times.append(now - began)
    return times
