"""Bundles checked one after another; one that is not sound stops none."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service.bundle import BundleError, load_bundle
from service.engine import make_engine
from service.engine.options import EngineOptions, Provider
from service.errors import IafvaeError
from service.repository.store import bundle_paths

__all__ = ["Check", "print_checks", "verify_bundles"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found of one bundle; `error` where it is not sound, and all else that is known."""

    path: str
    model: str | None = None
    version: str | None = None
    sha256: str | None = None
    files: int | None = None
    canaries: str | None = None  # the provider that gave the known answers
    error: str | None = None

    def line(self) -> str:
        """For people."""
        if self.error is not None:
            return f"{self.path}: NOT SOUND: {self.error}"
        checked = f"{self.files} files agree with the manifest"
        if self.canaries:
            checked += f", canaries agree on {self.canaries}"
        named = f"{self.model} {self.version} is sound: {checked}"
        return f"{self.path}: {named}\n  sha256 {self.sha256}"


def verify_bundles(paths: Sequence[Path], *, canaries: bool, provider: Provider) -> Iterator[Check]:
    """A check for each of `paths`, or for each bundle in it."""
    for path in paths:
        try:
            found = bundle_paths(path)
        except BundleError as error:
            yield Check(path=str(path), error=str(error))
            continue
        for bundle in found:
            yield _verify(bundle, canaries=canaries, provider=provider)


def _verify(path: Path, *, canaries: bool, provider: Provider) -> Check:
    try:
        bundle = load_bundle(path)
        computed = None
        if canaries:
            engine = make_engine(bundle, EngineOptions(provider=provider))
            computed = engine.provider
            engine.close()
    except (BundleError, IafvaeError) as error:
        return Check(path=str(path), error=str(error))
    return Check(
        path=str(path),
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        sha256=bundle.hash,
        files=len(bundle.manifest.files),
        canaries=computed,
    )


def print_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Each on standard output as it comes (as JSON, all at the end); whether all are sound."""
    done = []
    for check in checks:
        done.append(check)
        if not as_json:
            sys.stdout.write(check.line() + "\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in done], indent=1) + "\n")
    return all(check.error is None for check in done)
