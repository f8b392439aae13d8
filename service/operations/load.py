"""An engine and its scheduler for one bundle, as the engine's kind wants them."""

from __future__ import annotations

from service.bundle import Bundle
from service.engine.base import EngineBase
from service.engine.choice import make_engine
from service.engine.hardware import available_cores
from service.engine.options import EngineOptions
from service.scheduler.batching import batchers
from service.scheduler.scheduler import Scheduler, SchedulerObserver

__all__ = ["assemble"]

# A run of no more than this is over before two changes of threads would have paid; while the event
# loop computes it, nobody else is there to wait.
DIRECT_SECONDS = 0.002


def assemble(
    bundle: Bundle,
    options: EngineOptions,
    *,
    workers: int | None,
    max_batch_rows: int | None,
    max_queue_rows: int,
    hang_seconds: float,
    observer: SchedulerObserver | None,
) -> tuple[EngineBase, Scheduler]:
    """A warm engine, and a scheduler that is not started. Arguments as `Model.load`'s.

    On a CPU as many batches run as there are cores, each on one thread. A GPU has one at a time,
    and while it computes, one more is assembled, its noise by all cores.
    """
    streams = workers or max(1, available_cores() // options.threads)
    engine = make_engine(bundle, options)
    concurrent = engine.concurrency
    scheduler = Scheduler(
        engine,
        batchers(bundle.manifest, 1 if concurrent else streams),
        max_batch_rows=min(engine.max_rows, max_batch_rows or engine.max_rows),
        max_queue_rows=max_queue_rows,
        workers=streams if concurrent else 1,
        prefetch=0 if concurrent else 1,
        hang_seconds=hang_seconds,
        direct_seconds=DIRECT_SECONDS if concurrent else 0.0,
        observer=observer,
    )
    return engine, scheduler
