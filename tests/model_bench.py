"""Operations of a loaded model in a loop of their own, and inputs for its graphs."""

from __future__ import annotations

import asyncio

import numpy as np

from service.operations.model import Model
from service.scheduler.batching import batchers
from service.scheduler.scheduler import Scheduler


def performer(loaded: Model):
    """Runs an `async def` of a started runtime. Sessions are shared, schedulers are not."""

    def run(use):
        async def main():
            scheduler = Scheduler(
                loaded.engine,
                batchers(loaded.bundle.manifest),
                max_batch_rows=16,
                max_queue_rows=10_000,
                workers=2,
            )
            fresh = Model(loaded.bundle, loaded.engine, scheduler)
            await scheduler.start()
            try:
                return await use(fresh)
            finally:
                await scheduler.stop(1.0)  # not the runtime, which would close the engine

        return asyncio.run(asyncio.wait_for(main(), 30))

    return run


def score(runtime, images, k=16, seed=0, alpha=0.01, **options):
    """`Model.score` with its usual arguments."""
    return runtime.score(images, importance_samples=k, seed=seed, alpha=alpha, **options)


def inputs(bundle, operation, rows, images=None, seed=0):
    """Random inputs of a graph; in `score`, `rows` rows of `images` images in any order."""
    rng = np.random.default_rng(seed)
    images = images or rows
    made = {}
    for tensor in bundle.manifest.graphs[operation].inputs:
        of_image = tensor.name in {"image", "u_image"}
        shape = (images if of_image else rows, *tensor.shape[1:])
        if tensor.dtype == "uint8":
            made[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "int64":
            made[tensor.name] = rng.integers(0, images, shape)
        elif tensor.name in {"u", "u_image", "temperature"}:
            made[tensor.name] = rng.random(shape, dtype=np.float32)
        else:
            made[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return made
