"""Where the chaos test takes place: a server's settings, its directory of models, its metrics."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

MAX_BODY_BYTES = 262_144
MAX_N = 64
DELAY_SECONDS = 1.0  # between SIGTERM and the end of service
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)$")

Page = Mapping[tuple[str, str], float]  # (metric, labels) -> value


def variables(models: Path, keys: Path) -> dict[str, str]:
    """The environment of a server of `models`, whose limits are within reach."""
    settings = {
        "models": models,
        "default_model": "tiny",
        "keys_file": keys,
        "provider": "cpu",
        "watch_seconds": 0.1,
        "max_batch_rows": 16,  # so that large requests are in many batches
        "max_n": MAX_N,
        "max_rows": 2048,
        "max_queue_rows": 2048,
        "max_body_bytes": MAX_BODY_BYTES,
        "body_timeout_seconds": 1.0,
        "drain_delay_seconds": DELAY_SECONDS,
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    given = {f"IAFVAE_{k.upper()}": str(v) for k, v in settings.items()}
    return {**kept, "OMP_NUM_THREADS": "1", **given}


def is_busy(key: tuple[str, str]) -> bool:
    """Whether a metric is zero where nobody is served."""
    name, labels = key
    return name == "iafvae_queue_rows" or (name == "iafvae_models" and "retiring" in labels)


def outcomes(page: Page) -> Counter[str]:
    """Requests by outcome."""
    counted: Counter[str] = Counter()
    for (name, labels), value in page.items():
        if name == "iafvae_requests_total":
            counted[labels.split('outcome="')[1].split('"')[0]] += int(value)
    return counted


def put(bundle: Path, destination: Path, *, broken: bool = False) -> None:
    """Copy `bundle` to where another may stand; whoever looks sees the old or the new one."""
    staging = destination.with_name(f".{destination.name}.new")
    old = destination.with_name(f".{destination.name}.old")
    shutil.copytree(bundle, staging)
    if broken:
        weights = staging / "weights.bin"
        weights.write_bytes(weights.read_bytes()[:-1])
    if destination.exists():
        destination.rename(old)
    staging.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def page_of(text: str) -> Page:
    """What `/metrics` answered."""
    found = (SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return {(m[1], m[2] or ""): float(m[3]) for m in found if m}
