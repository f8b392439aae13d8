"""API keys: a file of their hashes, read again when it changes.

A line is the SHA-256 of a key in hexadecimal and a name for whoever holds it; ``#`` begins a
comment. Two keys may share a name, so that one can replace the other while both work. The file
holds no keys: who reads it cannot call the service.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import Unauthorized

__all__ = ["KeyFile", "KeyFileError", "append_line", "is_admin", "key_line", "new_key", "read_keys"]

logger = logging.getLogger("iafvae")
PREFIX = "iafvae_"  # by which people and scanners of leaked secrets recognise a key
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
MAX_FILE_BYTES = 2**20
MAX_KEY_BYTES = 512  # longer ones are refused unhashed
CHECK_SECONDS = 1.0  # between two looks at the file


class KeyFileError(ValueError):
    """The file cannot be read or a line of it is none; the message names it."""


class KeyFile:
    """The keys of the file at `path`. Raises KeyFileError where it is unreadable from the start.

    When it becomes unreadable later the last good keys stay, and the log says so. `clock` gives
    seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)  # before it is read: a change in between is seen next time
        self._keys = read_keys(path)
        self._checked = self._read_at = clock()
        self._problem = ""

    @property
    def failed(self) -> bool:
        """Whether the file cannot be read any more, or holds no keys."""
        self._refresh()
        return bool(self._problem)

    @property
    def age_seconds(self) -> float:
        """How long ago the keys that are in force were read."""
        self._refresh()
        return self._clock() - self._read_at

    def holder(self, authorization: bytes | None) -> str:
        """Whose key the value of an ``Authorization`` header is. Raises Unauthorized."""
        if authorization is None:
            raise Unauthorized("a key is needed: send it as the header 'Authorization: Bearer KEY'")
        scheme, _, token = authorization.strip().partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("keys are taken as 'Authorization: Bearer KEY' alone")
        token, name = token.strip(), ""
        if 0 < len(token) <= MAX_KEY_BYTES:
            self._refresh()
            digest = hashlib.sha256(token).digest()
            # All of them: how long it takes says nothing about which it was.
            for known, holder in self._keys.items():
                if hmac.compare_digest(known, digest):
                    name = holder
        if not name:
            raise Unauthorized(
                "the key is not known here: check it, or ask for a new one",
                'Bearer error="invalid_token"',
            )
        return name

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp and not self._problem:  # which may pass without a change
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            if str(error) != self._problem:
                logger.error("%s; the keys read before stay in force", error)
            self._problem = str(error)
        else:
            self._problem, self._read_at = "", now
            logger.info("%s: %d keys", self._path, len(self._keys))


def read_keys(path: Path) -> dict[bytes, str]:
    """Digests of the keys in the file at `path`, and whose they are.

    Raises KeyFileError naming the line that is wrong.
    """
    try:
        if path.exists() and not path.is_file():  # to open a FIFO would wait for who writes to it
            raise KeyFileError(
                f"the keys' file {path} (IAFVAE_KEYS_FILE) cannot be read: it is no regular file"
            )
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:  # which may be cut in the middle of a letter
            raise KeyFileError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8-sig")  # Windows' editors begin with a mark
    except OSError as error:
        raise KeyFileError(
            f"the keys' file {path} (IAFVAE_KEYS_FILE) cannot be read ({error.strerror})"
        ) from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not text: write a line for each key") from None
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 2 or not DIGEST.fullmatch(fields[0]) or not NAME.fullmatch(fields[1]):
            raise KeyFileError(
                f"{path}, line {number}: a line is the SHA-256 of a key in hexadecimal and a name "
                "of letters, digits and . _ @ -, as `iafvae key` prints it"
            )
        digest = bytes.fromhex(fields[0])
        if digest in keys:
            raise KeyFileError(f"{path}, line {number}: this key is there already")
        keys[digest] = fields[1]
    if not keys:
        raise KeyFileError(f"{path} holds no keys: nobody could call; add one with `iafvae key`")
    return keys


def is_admin(holder: str) -> bool:
    """Whether the holder of a key may change what is loaded: "admin", or "somebody@admin"."""
    return holder.rpartition("@")[2] == "admin"


def new_key() -> str:
    """A random key of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def key_line(key: str, name: str) -> str:
    """The line of `key` in the file. Raises KeyFileError for a bad name."""
    if not NAME.fullmatch(name):
        raise KeyFileError(f"name {name!r} must be 1 to 64 letters, digits and . _ @ -")
    return f"{hashlib.sha256(key.encode('utf-8')).hexdigest()} {name}"


def append_line(path: Path, line: str) -> None:
    """Add `line` to the file at `path`, which is made where there is none, for its owner alone.

    Raises KeyFileError where the file holds something else.
    """
    if path.exists() and path.stat().st_size:
        read_keys(path)  # of what is no file of keys nothing is changed
        text = path.read_text(encoding="utf-8")
        line = line if text.endswith("\n") else "\n" + line
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
        file.write(line + "\n")


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when the file does, also where a link is turned to another one."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on every request: Path.stat costs twice as much
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
