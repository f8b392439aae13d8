"""Bundles from and to elsewhere: https, S3, Google Cloud and Azure storage, or a directory.

A manifest holds the hash of every file, so the manifest's own hash names the whole bundle: nothing
is listed, and nothing appears under its name before all of it has been verified. Credentials come
from the variables that each kind of storage has for them (``AWS_ACCESS_KEY_ID``, ...).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.bundle.manifest import manifest_from_json
from service.bundle.reader import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Bundle,
    BundleError,
    file_digest,
    load_bundle,
)
from service.bundle.writer import publish, refuse_strangers
from service.errors import shown_url, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["pull", "push"]

RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
# obstore would give a whole transfer 30 seconds: what counts is that something comes.
CLIENT = {"allow_http": True, "read_timeout": timedelta(seconds=30), "timeout": timedelta(days=1)}


def pull(url: str, sha256: str, destination: Path, *, offline: bool = False) -> Bundle:
    """The bundle at `url`, a directory of it, in `destination`, where it appears verified.

    sha256: of its manifest. A sound bundle of that hash that is there is not fetched again; what
    an interrupted call has fetched is kept beside `destination` and gone on with. `offline` fetches
    nothing. Of several at once that want the same, one fetches it. Raises BundleError.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise BundleError(f"{sha256!r} is no SHA-256 of 64 hexadecimal digits")
    refuse_strangers(destination)
    if there := _whole(destination, sha256):
        return there
    if offline:
        raise BundleError(
            f"{destination}: no bundle of the hash {sha256} is there, or a damaged one"
        )
    part = destination.with_name(f".{destination.name}.{sha256[:16]}.part")
    with _turn(part):
        if there := _whole(destination, sha256):  # by who had the turn before
            shutil.rmtree(part, ignore_errors=True)
            return there
        bundle = _fetch_all(url, sha256, part)
        publish(part, destination)
        shutil.rmtree(part, ignore_errors=True)  # what was at `destination` lies there now
    return replace(bundle, path=destination)


def push(path: Path, url: str) -> Bundle:
    """Copy the bundle at `path` to `url`, its manifest last; another that is there is not replaced.

    Raises BundleError.
    """
    bundle, store = load_bundle(path), _store(url, create=True)
    from obstore.exceptions import BaseError, NotFoundError

    try:
        try:
            there = bytes(store.get(MANIFEST).bytes())
            if hashlib.sha256(there).hexdigest() != bundle.hash:
                raise BundleError(f"{shown_url(url)} holds another bundle: give another URL")
        except (NotFoundError, FileNotFoundError):
            pass
        for name in (*bundle.manifest.files, MANIFEST):
            store.put(name, path / name)
    except (BaseError, OSError) as error:
        raise _failed(url, "cannot be written", error) from None
    return bundle


def _whole(destination: Path, sha256: str) -> Bundle | None:
    """The bundle of that hash at `destination`; None where there is none, or a damaged one."""
    manifest = destination / MANIFEST
    with suppress(BundleError):
        if manifest.is_file() and file_digest(manifest) == sha256:
            return load_bundle(destination)
    return None


@contextmanager
def _turn(part: Path) -> Iterator[None]:
    """Make the directory `part`, or wait until nobody else fetches into it."""
    while (held := _hold(part)) is None:
        pass
    try:
        yield
    finally:
        if held >= 0:
            os.close(held)


def _hold(part: Path) -> int | None:
    """A descriptor that locks the directory `part`; None where it was published meanwhile."""
    part.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        return -1
    import fcntl

    try:
        held = os.open(part, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system that has no locks
        fcntl.flock(held, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(held), part.stat()):
            return held
    os.close(held)
    return None


def _fetch_all(url: str, sha256: str, part: Path) -> Bundle:
    store = _store(url)
    _fetch(store, url, MANIFEST, part / MANIFEST, sha256, MAX_MANIFEST_BYTES)
    try:
        files = manifest_from_json(json.loads((part / MANIFEST).read_bytes())).files
    except ValueError as error:
        raise BundleError(f"{shown_url(url)}: {MANIFEST}: {error}") from None
    for name, record in files.items():
        (part / name).parent.mkdir(exist_ok=True)
        _fetch(store, url, name, part / name, record.sha256, record.bytes)
    return load_bundle(part)


def _fetch(store: ObjectStore, url: str, name: str, file: Path, sha256: str, size: int) -> None:
    """`name` into `file`, from where an earlier call has left off; of at most `size` bytes."""
    from obstore.exceptions import BaseError, NotSupportedError

    if file.is_file() and file_digest(file) == sha256:
        return
    have = file.stat().st_size if file.is_file() else 0
    if have >= size:
        have = 0
    try:
        try:
            answer = store.get(name, options={"range": {"offset": have}} if have else {})
        except NotSupportedError:  # by a server that knows no ranges
            have, answer = 0, store.get(name)
        with file.open("ab" if have else "wb") as out:
            for chunk in answer.stream():
                have += len(chunk)
                if have > size:
                    break
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())  # a machine that stops leaves no bundle of empty files
    except (BaseError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # ours: a full disk
            raise BundleError(f"{file} cannot be written ({error.strerror})") from None
        raise _failed(url, f"{name} cannot be read", error) from None
    if file_digest(file) != sha256:
        file.unlink()
        with suppress(OSError):
            file.parent.rmdir()  # where nothing else has been fetched
        raise BundleError(
            f"{shown_url(url)}: {name} does not have the SHA-256 {sha256}: "
            "check the URL and the hash"
        )


def _store(url: str, *, create: bool = False) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url
    except ImportError:
        raise BundleError(
            "bundles elsewhere need obstore: pip install -e '.[remote]' -c constraints.txt"
        ) from None
    # Each kind of store has options of its own.
    options: dict[str, Any] = {"client_options": CLIENT, "retry_config": RETRIES}
    if create and url.startswith("file:"):
        options["mkdir"] = True
    place, mark, query = url.partition("?")
    # Of https `from_url` makes stores of S3 and Azure, which want credentials and drop a query.
    opened = HTTPStore.from_url if re.match("https?:", url, re.IGNORECASE) else from_url
    try:  # the name of a file is added with a slash: "//" is another place to most servers
        store: ObjectStore = opened(place.rstrip("/") + mark + query, **options)
        return store
    except (BaseError, OSError, ValueError) as error:
        raise _failed(url, "is no place for bundles", error) from None


def _failed(url: str, problem: str, error: Exception) -> BundleError:
    said = str(error).replace(url, shown_url(url)).strip()
    reason = without_secrets(said.splitlines()[0]) if said else ""
    return BundleError(f"{shown_url(url)}: {problem} ({type(error).__name__}: {reason[:300]})")
