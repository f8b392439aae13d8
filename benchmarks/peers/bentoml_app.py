"""The score graph behind BentoML: bentoml serve bentoml_app:Scores"""

import base64
import os
import sys
from pathlib import Path

import bentoml

sys.path.append(str(Path(__file__).resolve().parents[1]))
from score_graph import ScoreGraph

CORES = len(os.sched_getaffinity(0))


@bentoml.service(
    workers=CORES,
    traffic={"timeout": 60, "max_concurrency": 4096},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Scores:
    """Images as base64 of their bytes, one string each: as JSON numbers they would be parsed for
    longer than computed."""

    def __init__(self) -> None:
        self.graph = ScoreGraph.given()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def score(self, images: list[str]) -> list[float]:
        pixels = b"".join(base64.b64decode(image) for image in images)
        scores: list[float] = self.graph(self.graph.images(pixels)).tolist()
        return scores
