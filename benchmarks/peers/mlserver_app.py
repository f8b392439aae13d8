"""The score graph as an MLServer runtime; `mlserver_main.py` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.append(str(Path(__file__).resolve().parents[1]))
from score_graph import ScoreGraph


class Scores(MLModel):
    """Images as base64 of their bytes, one string each: MLServer's REST has no binary tensors."""

    async def load(self) -> bool:
        self.graph = ScoreGraph.given()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pixels = Base64Codec.decode_input(payload.inputs[0])
        scores = self.graph(self.graph.images(b"".join(pixels)))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("log_weight", scores.astype(np.float32))],
        )
