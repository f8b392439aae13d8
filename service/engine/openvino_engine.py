"""The engine on OpenVINO's CPU plugin, and the only importer of openvino: the extra `openvino`.

Each operation is compiled once, for any batch size, with as many streams of one thread as runs may
be in flight; every caller takes an infer request of its own. Precision is stated: left alone,
OpenVINO computes in bfloat16 on processors with AMX.

Rows keep their bytes in every batch as far as `EngineBase.warm` can see: on the bundle that ships,
with widths of multiples of 16, batches need no padding on the processors that were tried.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle, BundleError
from service.bundle.graphs import GraphSpec
from service.engine.arrays import Arrays
from service.engine.base import SAMPLING, EngineBase, EngineOptions, Precision
from service.engine.padding import Padding, RowBlocks
from service.errors import ProviderUnavailable

# OpenVINO reports its use to its makers where this package is there, and does without where it
# cannot be imported: a server sends nothing to anybody that its operator did not ask for.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

__all__ = ["OpenVinoEngine"]

CPU_ROWS = 32
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# What the processor must be able to do, in the words of OpenVINO's OPTIMIZATION_CAPABILITIES.
CAPABILITIES: dict[Precision, str] = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


class OpenVinoEngine(EngineBase):
    """Runs the graphs of one bundle with OpenVINO; `changes` replace fields of `options`.

    Raises BundleError for graphs that it cannot compile, and ProviderUnavailable for a provider or
    a sampling precision that it does not have.
    """

    backend = "openvino"
    provider = "openvino"

    def __init__(
        self, bundle: Bundle, options: EngineOptions | None = None, **changes: Any
    ) -> None:
        super().__init__(bundle, replace(options or EngineOptions(), **changes))
        if self.options.provider not in ("auto", "cpu"):
            raise ProviderUnavailable(
                f"{self.options.provider} was demanded but the backend openvino computes on the"
                " CPU: set the provider to auto or cpu, or the backend to onnxruntime"
            )
        self._core = openvino.Core()
        # A mapped weights file that is overwritten in place would end the process.
        self._core.set_property({"ENABLE_MMAP": False})
        self._check_precision()
        self._graphs: dict[tuple[str, bool], _Compiled] = {}
        self._compiling = threading.Lock()
        self.settle(CPU_ROWS)

    def paddings(self) -> Sequence[Padding]:
        """As `EngineBase.paddings`."""
        stated = self.bundle.manifest.row_block
        return [RowBlocks(block) for block in (1, 2, 4, 8, 16) if block >= stated]

    def compute(
        self,
        operation: str,
        feed: Arrays,
        shape: Mapping[str, int],  # noqa: ARG002 - any shape will do
        *,
        exact: bool = False,
    ) -> list[NDArray[Any]]:
        """As `EngineBase.compute`."""
        reduced = operation in SAMPLING and not exact
        precision = self.options.sampling_precision if reduced else "float32"
        key = operation, precision == "float32"
        compiled = self._graphs.get(key)
        if compiled is None:
            with self._compiling:
                compiled = self._graphs.get(key) or self._compile(operation, precision)
                self._graphs[key] = compiled
        return compiled.run(feed)

    def close(self) -> None:
        """As `EngineBase.close`."""
        self._graphs.clear()

    def _check_precision(self) -> None:
        wanted = self.options.sampling_precision
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        there = [name for name, word in CAPABILITIES.items() if word in able]
        if wanted not in there:
            raise ProviderUnavailable(
                f"OpenVINO cannot sample in {wanted} on this processor, only in"
                f" {', '.join(there)}: set IAFVAE_SAMPLING_PRECISION to one of these"
            )

    def _compile(self, operation: str, precision: Precision) -> _Compiled:
        manifest, path = self.bundle.manifest, self.bundle.path
        graph, streams = manifest.graphs[operation], self.options.streams
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * self.options.threads,
            "ENABLE_CPU_PINNING": False,  # cores are not ours alone
        }
        try:
            model = self._core.read_model(str(path / graph.file))
            compiled = self._core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            version = openvino.get_version().split("-", maxsplit=1)[0]
            raise BundleError(
                f"bundle {path}: {graph.file}: OpenVINO {version} cannot load it ({error}); export"
                " the bundle again, or set IAFVAE_BACKEND to onnxruntime"
            ) from error
        for name in (graph.file, manifest.weights_file):
            self.bundle.read(name)  # raises where it is no longer what was verified
        return _Compiled(compiled, graph)


class _Compiled:
    """One operation, and the infer requests that are free."""

    def __init__(self, model: openvino.CompiledModel, graph: GraphSpec) -> None:
        self._model, self._graph = model, graph
        self._free: list[openvino.InferRequest] = []

    def run(self, feed: Arrays) -> list[NDArray[Any]]:
        """Compute; the request is left to nobody where that fails."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._model.create_infer_request()
        for name, array in feed.items():
            tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
            request.set_tensor(name, tensor)
        request.infer()
        # The request's own memory, which its next run overwrites.
        outputs = [request.get_tensor(t.name).data.copy() for t in self._graph.outputs]
        self._free.append(request)
        return outputs
