"""What the requests of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.api.security.admission import Admission
from service.codecs.pool import DecoderPool, Threads
from service.metrics import Metrics
from service.repository.registry import Registry
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracer

__all__ = ["AppState"]


@dataclass(frozen=True, kw_only=True)
class AppState:
    """Settings, models, metrics, bounds on what is worked on at once, processes for
    images, threads for other long work on bytes, and who exports traces, if somebody does.
    """

    settings: Settings
    registry: Registry
    metrics: Metrics
    admission: Admission
    decoders: DecoderPool
    threads: Threads
    tracer: Tracer | None = None
