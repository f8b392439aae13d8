"""Bundles checked one after another; one that is not sound stops none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from service.bundle import BundleError, load_bundle
from service.cli.options import print_json, print_lines
from service.cli.progress import shown
from service.engine.choice import make_engine
from service.engine.options import EngineOptions
from service.errors import IafvaeError
from service.repository.store import bundle_paths

__all__ = ["Check", "print_checks", "verify_bundle", "verify_bundles"]


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
        """The result as text for people."""
        if self.error is not None:
            return f"{self.path}: NOT SOUND: {self.error}"
        checked = f"{self.files} files agree with the manifest"
        if self.canaries:
            checked += f", canaries agree on {self.canaries}"
        named = f"{self.model} {self.version} is sound: {checked}"
        return f"{self.path}: {named}\n  sha256 {self.sha256}"


def verify_bundles(paths: Sequence[Path], engine: EngineOptions | None) -> Iterator[Check]:
    """A check for each of `paths`, or for each bundle in it; engine: as `verify_bundle` has it."""
    for path in paths:
        try:
            found = bundle_paths(path)
        except BundleError as error:
            yield Check(path=str(path), error=str(error))
            continue
        for bundle in found:
            with shown(f"checking {bundle}"):
                check = verify_bundle(bundle, engine)
            yield check


def verify_bundle(path: Path, engine: EngineOptions | None) -> Check:
    """The files of one bundle, and unless `engine` is None its canaries on this machine."""
    try:
        bundle = load_bundle(path)
        computed = None
        if engine is not None:
            with closing(make_engine(bundle, engine)) as made:
                computed = made.provider
    except (BundleError, IafvaeError, OSError) as error:
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
            print_lines(check.line())
    if as_json:
        print_json([asdict(check) for check in done])
    return all(check.error is None for check in done)
