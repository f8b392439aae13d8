"""The score graph behind Ray Serve: python ray_app.py PORT"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

HERE = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))


@serve.deployment(num_replicas=CORES, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Scores:
    """Images as their bytes; requests of any number of images are joined."""

    def __init__(self) -> None:
        sys.path.append(str(HERE))
        from score_graph import ScoreGraph

        self.graph = ScoreGraph.given()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def score(self, requests: list[Any]) -> list[Any]:
        ends = np.cumsum([len(images) for images in requests])
        return np.split(self.graph(np.concatenate(requests)), ends[:-1])

    async def __call__(self, request: Request) -> Response:
        scores = await self.score(self.graph.images(await request.body()))
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="warning",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
        logging_config=serve.schema.LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    serve.run(Scores.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
