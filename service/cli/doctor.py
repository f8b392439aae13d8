"""What this machine has, what will compute and why, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from service.settings import Settings

__all__ = ["Finding", "examine", "print_findings"]

INSTALL = "-c constraints.txt"  # in a checkout: the versions that were tested together
TRAINING = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "pooch")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: "ok", "note" (something optional is not there) or "missing" (it will not serve)."""

    state: Literal["ok", "note", "missing"]
    subject: str
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """What is found, line after line; the models are verified, one engine is made for each."""
    yield _program()
    yield _runtime()
    yield _cores()
    yield from _models(settings)
    yield _address(settings)
    yield _keys(settings)
    yield _training()


def _program() -> Finding:
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        return Finding(state="ok", subject="program", text=f"iafvae {version('iafvae')}, {python}")
    except PackageNotFoundError:
        text = f"iafvae is not installed ({python}): pip install . {INSTALL}"
        return Finding(state="note", subject="program", text=text)


def _runtime() -> Finding:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return Finding(state="ok", subject="runtime", text=f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    text = f"ONNX Runtime is not installed: pip install . {INSTALL}"
    return Finding(state="missing", subject="runtime", text=text)


def _cores() -> Finding:
    from service.engine.hardware import available_cores

    usable, there = available_cores(), os.cpu_count()
    text = f"{usable} of {there} may be used: so many batches are computed at once"
    return Finding(state="ok", subject="cores", text=text)


def _models(settings: Settings) -> Iterator[Finding]:
    """What computes is known when an engine is made of a bundle that is sound."""
    from service.bundle import BundleError
    from service.repository.store import bundle_paths

    try:
        paths = bundle_paths(settings.models)
    except BundleError as error:
        yield Finding(state="missing", subject="models", text=str(error))
        return
    providers: set[str] = set()
    for path in paths:
        yield _model(path, settings, providers)
    yield from _provider(settings, providers)


def _model(path: Path, settings: Settings, providers: set[str]) -> Finding:
    from service.cli.verify import verify_bundle

    check = verify_bundle(path, settings.engine)
    if check.error is not None:
        return Finding(state="missing", subject="model", text=check.error)
    providers.add(str(check.canaries))
    text = f"{check.model} {check.version} in {path}, sha256 {check.sha256}"
    return Finding(state="ok", subject="model", text=text)


def _provider(settings: Settings, providers: set[str]) -> Iterator[Finding]:
    from service.engine.onnxruntime_engine import gpu_problem

    for provider in sorted(providers):
        why = f"IAFVAE_PROVIDER={settings.provider}"
        if provider == "cpu" and settings.provider == "auto":
            why += f", and {gpu_problem() or 'CUDA could not be used (the log says why)'}"
        yield Finding(state="ok", subject="computes", text=f"{provider}: {why}")


def _address(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        text = f"{where} cannot be listened on ({error.strerror}): choose another IAFVAE_PORT"
        return Finding(state="missing", subject="address", text=text)
    return Finding(state="ok", subject="address", text=f"{where} is free")


def _keys(settings: Settings) -> Finding:
    from service.api.security.keys import KeyFile, KeyFileError

    if settings.keys_file is None:
        text = "none (IAFVAE_KEYS_FILE): everybody who reaches the port may call"
        return Finding(state="note", subject="keys", text=text)
    try:
        KeyFile(settings.keys_file)
    except KeyFileError as error:
        return Finding(state="missing", subject="keys", text=str(error))
    return Finding(state="ok", subject="keys", text=str(settings.keys_file))


def _training() -> Finding:
    try:
        found = [f"{name} {version(name)}" for name in TRAINING]
    except PackageNotFoundError as error:
        text = (
            f"{error.name} is not installed; serving needs none of it. To train: make install-train"
            f", or pip install '.[train]' {INSTALL}"
        )
        return Finding(state="note", subject="training", text=text)
    return Finding(state="ok", subject="training", text=", ".join(found))


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Findings on standard output, a line (or an object) each."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in findings], indent=1) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    styles = {"ok": "green", "note": "yellow", "missing": "red"}
    for one in findings:
        table.add_row(Text(one.state, style=styles[one.state]), one.subject, Text(one.text))
    Console().print(table)
