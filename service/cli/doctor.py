"""What this machine has, what will compute and why, and what is missing."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

from service.cli.options import print_json
from service.cli.output import print_rows
from service.settings import Settings

__all__ = ["Finding", "examine", "print_findings"]

INSTALL = "-c constraints.txt"  # in a checkout: the versions that were tested together
TRAINING = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "pooch")


class Finding(NamedTuple):
    """One line: "ok", "note" (something optional is not there) or "missing" (it will not serve)."""

    state: Literal["ok", "note", "missing"]
    subject: str
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield the findings; each bundle is verified and an engine made of it, which takes seconds."""
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
        return Finding("ok", "program", f"iafvae {version('iafvae')}, {python}")
    except PackageNotFoundError:
        return Finding(
            "note", "program", f"iafvae is not installed ({python}): pip install -e . {INSTALL}"
        )


def _runtime() -> Finding:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return Finding("ok", "runtime", f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding(
        "missing", "runtime", f"ONNX Runtime is not installed: pip install -e . {INSTALL}"
    )


def _cores() -> Finding:
    from service.engine.hardware import available_cores

    usable, there = available_cores(), os.cpu_count()
    text = f"{usable} of {there} may be used; as many batches are computed at once"
    return Finding("ok", "cores", text)


def _models(settings: Settings) -> Iterator[Finding]:
    """What computes is known when an engine is made of a bundle that is sound."""
    from service.bundle import BundleError
    from service.repository.store import bundle_paths

    try:
        paths = bundle_paths(settings.models)
    except BundleError as error:
        yield Finding("missing", "models", str(error))
        return
    from service.cli.verify import verify_bundle
    from service.engine.onnxruntime_engine import gpu_problem

    providers: set[str] = set()
    for path in paths:
        check = verify_bundle(path, settings.engine)
        if check.error is not None:
            yield Finding("missing", "model", check.error)
            continue
        providers.add(str(check.canaries))
        text = f"{check.model} {check.version} in {path}, sha256 {check.sha256}"
        yield Finding("ok", "model", text)
    for provider in sorted(providers):
        why = f"IAFVAE_PROVIDER={settings.provider}"
        if provider == "cpu" and settings.provider == "auto":
            why += f", and {gpu_problem() or 'CUDA could not be used (the log says why)'}"
        yield Finding("ok", "computes", f"{provider}: {why}")


def _address(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:  # UnicodeError: no host's name, such as ".."
        choose = "choose another IAFVAE_PORT, or IAFVAE_HOST"
        text = f"{where} cannot be listened on ({error}): {choose}"
        return Finding("missing", "address", text)
    return Finding("ok", "address", f"{where} is free")


def _keys(settings: Settings) -> Finding:
    from service.api.security.keys import KeyFile, KeyFileError

    if settings.keys_file is None:
        text = "none (IAFVAE_KEYS_FILE): everybody who reaches the port may call"
        return Finding("note", "keys", text)
    try:
        KeyFile(settings.keys_file)
    except KeyFileError as error:
        return Finding("missing", "keys", str(error))
    return Finding("ok", "keys", str(settings.keys_file))


def _training() -> Finding:
    try:
        found = [f"{name} {version(name)}" for name in TRAINING]
    except PackageNotFoundError as error:
        text = (
            f"{error.name} is not installed; serving needs none of it. To train: make install-train"
            f", or pip install -e '.[train]' {INSTALL}"
        )
        return Finding("note", "training", text)
    return Finding("ok", "training", ", ".join(found))


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Findings on standard output, a line (or an object) each."""
    if as_json:
        print_json([one._asdict() for one in findings])
        return
    styles = {"ok": "green", "note": "yellow", "missing": "red"}
    print_rows([((one.state, styles[one.state]), one.subject, one.text) for one in findings])
