"""Starts MLServer with the runtime of `mlserver_app.py`: python mlserver_main.py PORT GRPC_PORT"""

from __future__ import annotations

import asyncio
import os
import sys

from mlserver import MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from mlserver_app import Scores


async def main() -> None:
    cores = len(os.sched_getaffinity(0))
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_port=int(sys.argv[2]),
        metrics_endpoint=None,
        parallel_workers=cores,
    )
    model = ModelSettings(
        name="score",
        implementation=Scores,
        max_batch_size=32,
        max_batch_time=0.001,
        parameters=ModelParameters(version="1"),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
