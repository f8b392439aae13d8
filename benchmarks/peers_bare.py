"""The bare graph: ONNX Runtime in this process, inputs ready, nothing around it."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import onnxruntime as ort

from benchmarks.load_results import Kind, Outcome, Record
from benchmarks.peers_graph import ScoreGraph
from benchmarks.peers_protocols import Images
from service.bundle import Bundle

BEST_ROWS = 32  # above it a batch gains nothing on a CPU; the service's own largest


def drawn_images(bundle: Bundle, count: int, seed: int = 0) -> Images:
    """Images like those that the model was trained on, drawn from it: uint8 ``[count, C, H, W]``.

    Noise would compress badly, and so make requests of PNGs larger than people's are.
    """
    path = bundle.path / bundle.manifest.graphs["sample"].cpu
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape[1] for value in session.get_inputs()}
    rng = np.random.default_rng(seed)
    feed = {
        "eps": rng.standard_normal((count, shapes["eps"]), np.float32),
        "temperature": np.ones((count, shapes["temperature"]), np.float32),
        "u": rng.random((count, shapes["u"]), np.float32),
    }
    mean = session.run(["mean"], feed)[0]
    return np.ascontiguousarray(np.rint(255 * mean).astype(np.uint8))


def graph_of(bundle: Bundle) -> ScoreGraph:
    """Its score graph."""
    return ScoreGraph(bundle.path / bundle.manifest.graphs["score"].cpu)


def bare(graph: ScoreGraph, images: Images, callers: int, seconds: float) -> Outcome:
    """`callers` threads, each computing `images` again and again on one thread of its own."""
    for _ in range(3):
        graph(images)
    gc.collect()
    parts: list[list[Record]] = [[] for _ in range(callers)]
    start, cpu = time.perf_counter(), time.process_time()
    threads = [
        threading.Thread(target=_call, args=(graph, images, start + seconds, part))
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Outcome(
        records=[record for part in parts for record in part],
        start=start,
        seconds=time.perf_counter() - start,
        offered=None,
        server_cpu_seconds=time.process_time() - cpu,
        client_cpu_seconds=0.0,
    )


def _call(graph: ScoreGraph, images: Images, end: float, records: list[Record]) -> None:
    now = time.perf_counter()
    while not records or now < end:
        began = now
        graph(images)
        now = time.perf_counter()
        records.append(Record(began, began, now, len(images), Kind.OK))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
