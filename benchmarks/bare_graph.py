"""A bundle's graphs in ONNX Runtime with nothing around them, and what their operators cost."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
import onnxruntime as ort

from service.bundle import Bundle, load_bundle

Arrays = dict[str, np.ndarray[Any, Any]]


def inputs(bundle: Bundle, operation: str, rows: int) -> Arrays:
    """Random inputs of a graph; in `score`, one row an image."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for tensor in bundle.manifest.graphs[operation].inputs:
        shape = (rows, *map(int, tensor.shape[1:]))
        if tensor.dtype == "uint8":
            made[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "int64":
            made[tensor.name] = np.arange(rows)
        elif tensor.name in {"u", "temperature"}:
            made[tensor.name] = rng.random(shape, dtype=np.float32)
        else:
            made[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
    return made


def session(bundle: Bundle, model: bytes, profile: str | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str((bundle.path / "cpu").resolve())
    )
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def operator_shares(path: Path, operation: str, batch: int) -> list[tuple[str, int, float]]:
    """Operators by time: kind, how many, share. A node's time is the lower quartile of its runs."""
    bundle = load_bundle(path)
    model = bundle.read(bundle.manifest.graphs[operation].cpu)
    given = inputs(bundle, operation, batch)
    with tempfile.TemporaryDirectory() as folder:
        opened = session(bundle, model, str(Path(folder) / "profile"))
        for _ in range(20):
            opened.run(None, given)
        events = json.loads(Path(opened.end_profiling()).read_text())
    runs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["args"]["op_name"], event["name"]].append(event["dur"])
    nodes = {key: sorted(times)[len(times) // 4] for key, times in runs.items()}
    whole = sum(nodes.values())
    kinds = {kind for kind, _ in nodes}
    shares = [
        (kind, sum(k == kind for k, _ in nodes), sum(t for (k, _), t in nodes.items() if k == kind))
        for kind in kinds
    ]
    return sorted(((k, n, t / whole) for k, n, t in shares), key=lambda row: -row[2])
