"""What the requests of one application share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from service.api.request.body import Buffers
from service.repository.registry import Registry
from service.settings import Settings
from service.telemetry import Telemetry

__all__ = ["Context"]

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Context:
    """Settings, models, metrics, and bounds on memory and threads for bodies."""

    settings: Settings
    registry: Registry
    telemetry: Telemetry
    buffers: Buffers
    decoders: Executor

    async def beside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` in a thread, so that long work on bytes does not hold other requests up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.decoders, partial(function, *args, **kwargs))
