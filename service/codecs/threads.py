"""Threads for long work on bytes, which callers get in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.codecs.pool import Turns

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """`count` threads, of which one caller has at most `share` at once (None: all)."""

    def __init__(self, count: int, share: int | None = None) -> None:
        self._executor, self._turns = ThreadPoolExecutor(count, "codec"), Turns(count, share)

    async def run(self, work: Callable[[], T], *, caller: str) -> T:
        """What `work` gives, when `caller` has had its turn.

        Who gives up while it waits costs nothing; work that has begun cannot be interrupted, and
        has its thread until it ends.
        """
        await self._turns.take(caller)
        working = asyncio.get_running_loop().run_in_executor(self._executor, work)
        working.add_done_callback(lambda _: self._turns.give(caller))
        return await asyncio.shield(working)

    def close(self) -> None:
        """Begin nothing more, and wait for nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)
