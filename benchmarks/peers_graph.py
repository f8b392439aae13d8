"""The graph that everybody serves: `score` of a bundle at K = 1, and the noise that goes with it.

Imported by the peers' applications, too, each in its own environment: NumPy and ONNX Runtime alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
import onnxruntime as ort

GRAPH_VARIABLE = "PEER_GRAPH"  # where a peer's application finds the graph


class ScoreGraph:
    """log p(x, z) - log q(z | x) of images, one draw of z each, on one thread.

    The peers give every image the same draw of the noise, made once: it costs them nothing, and
    their answers do not depend on their batches.
    """

    def __init__(self, path: Path | str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # as in the service's engine, for ragged batches
        self._session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        inputs = {value.name: value for value in self._session.get_inputs()}
        self.image_shape: tuple[int, ...] = tuple(inputs["image"].shape[1:])
        rng = np.random.default_rng(0)
        self._eps = rng.standard_normal((1, inputs["eps"].shape[1]), np.float32)

    @classmethod
    def given(cls) -> ScoreGraph:
        """The graph that the environment names."""
        return cls(os.environ[GRAPH_VARIABLE])

    def images(self, pixels: bytes) -> NDArray[np.uint8]:
        """Images uint8 ``[n, C, H, W]`` of their bytes."""
        return np.frombuffer(pixels, np.uint8).reshape(-1, *self.image_shape)

    def __call__(
        self, images: NDArray[np.uint8], eps: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Nats, float32 ``[n]``; eps: ``[n, D]`` instead of the peers' draw."""
        n = len(images)
        noise = np.repeat(self._eps, n, axis=0) if eps is None else eps
        feed: dict[str, Any] = {"image": images, "owner": np.arange(n), "eps": noise}
        scores: NDArray[np.float32] = self._session.run(["log_weight"], feed)[0]
        return scores
