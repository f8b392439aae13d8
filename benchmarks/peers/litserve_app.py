"""The score graph behind LitServe: python litserve_app.py PORT"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Request

sys.path.append(str(Path(__file__).resolve().parents[1]))
from score_graph import ScoreGraph


class Scores(litserve.LitAPI):
    """Images as base64 of their bytes in JSON, as in LitServe's image examples."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the name is LitServe's
        self.graph = ScoreGraph.given()

    def decode_request(self, request: Request) -> Any:
        return self.graph.images(base64.b64decode(request["images"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Requests may have any number of images: they are joined in `predict`."""
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        ends = np.cumsum([len(images) for images in x])
        return np.split(self.graph(np.concatenate(x)), ends[:-1])

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        return {"scores": output.tolist()}


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    api = Scores(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=cores, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
