"""Answers of HTTP/1.1 servers, read as they come: by length or in chunks, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class HttpAnswer:
    """A status, a body, and whether the server closes the connection."""

    status: int
    head: bytes
    body: bytes
    closes: bool


class Reader:
    """Turns what a connection receives into answers; one request is in flight at a time."""

    __slots__ = ("_buffer", "_chunks", "_head", "_need")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: bytes | None = None
        self._need = 0  # bytes of the body; -1: chunked
        self._chunks: list[bytes] = []

    def feed(self, data: bytes) -> HttpAnswer | None:
        """The answer that `data` completes. Raises ValueError for what is not HTTP."""
        self._buffer += data
        if self._head is None and not self._begin():
            return None
        body = self._chunked() if self._need < 0 else self._counted()
        if body is None or self._head is None:
            return None
        head, self._head = self._head, None
        return HttpAnswer(int(head[9:12]), head, body, b"connection: close" in head)

    def _begin(self) -> bool:
        end = self._buffer.find(HEAD_END)
        if end < 0:
            return False
        self._head = head = bytes(self._buffer[: end + 2]).lower()
        del self._buffer[: end + 4]
        if not head.startswith(b"http/1."):
            raise ValueError("no HTTP/1 answer")
        length = head.find(b"\r\ncontent-length:")
        if length >= 0:
            self._need = int(head[length + 17 : head.index(b"\r\n", length + 17)])
        elif b"transfer-encoding: chunked" in head:
            self._need = -1
        else:
            self._need = 0
        return True

    def _counted(self) -> bytes | None:
        if len(self._buffer) < self._need:
            return None
        body = bytes(self._buffer[: self._need])
        del self._buffer[: self._need]
        return body

    def _chunked(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if len(self._buffer) < end + size + 4:
                return None
            self._chunks.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            del self._buffer[: end + size + 4]
            if size == 0:
                body, self._chunks = b"".join(self._chunks), []
                return body
        return None
