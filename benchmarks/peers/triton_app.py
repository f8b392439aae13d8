"""The score graph behind Triton, by PyTriton: python triton_app.py PORT GRPC_PORT"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

sys.path.append(str(Path(__file__).resolve().parents[1]))
from score_graph import ScoreGraph


def instance(graph: ScoreGraph) -> Any:
    """An inference callable: several of them run at once."""

    @batch
    def infer(image: Any) -> dict[str, Any]:
        return {"log_weight": graph(image)[:, None]}

    return infer


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    graph = ScoreGraph.given()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_address="127.0.0.1",
        grpc_port=int(sys.argv[2]),
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="score",
            infer_func=[instance(graph) for _ in range(cores)],
            inputs=[Tensor(name="image", dtype=np.uint8, shape=graph.image_shape)],
            outputs=[Tensor(name="log_weight", dtype=np.float32, shape=(1,))],
            config=ModelConfig(
                max_batch_size=256, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()
