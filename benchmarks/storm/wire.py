"""HTTP by hand, so that it can be broken off anywhere: one connection, and what came back."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

HOST = "127.0.0.1"
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of an orderly end


@dataclass(frozen=True)
class Answer:
    """Status, headers in small letters, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def slug(self) -> str:
        """The kind of a native error, or "ok", or the status where nothing else says it."""
        if self.status == 200:
            return "ok"
        if self.headers.get("content-type") == "application/problem+json":
            return str(json.loads(self.body)["type"]).rsplit(":", 1)[-1]
        return str(self.status)


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        """Connect. Raises OSError."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def send(self, *parts: bytes, pause: float = 0.0) -> None:
        """Send the parts, with a pause after each but the last."""
        for number, part in enumerate(parts):
            if number and pause:
                await asyncio.sleep(pause)
            self._writer.write(part)
            await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}

    async def body(self, size: int) -> bytes:
        """So many bytes of a body."""
        return await self._reader.readexactly(size)

    async def answer(self) -> Answer:
        """The next answer, whole. Raises EOFError or OSError where it is broken off."""
        status, headers = await self.head()
        return Answer(status, headers, await self.body(int(headers.get("content-length", "0"))))

    def close(self, *, abort: bool = False) -> None:
        """Hang up, in order or not."""
        if abort:
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self._writer.transport.abort()
        else:
            self._writer.close()


def head(path: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """The head of a POST; length: of its body, None for one in chunks."""
    framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": length}
    lines = [f"{name}: {value}" for name, value in {"host": HOST, **headers, **framing}.items()]
    return "\r\n".join((f"POST {path} HTTP/1.1", *lines, "", "")).encode()


def pieces(data: bytes, count: int) -> list[bytes]:
    """`data` in at most `count` parts."""
    size = max(1, -(-len(data) // count))
    return [data[i : i + size] for i in range(0, len(data), size)]
