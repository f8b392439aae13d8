"""The engine on one GPU, through ONNX Runtime's CUDA provider. No GPU has run it yet:
`deploy/gpu_check.py` is the command that shows it on one.

One thread of an engine touches the device: CUDA's libraries keep handles and workspaces for each
thread that ever ran. Batches are padded to few bucket sizes. Each bucket of each operation has a
session whose sizes are fixed, so that cuDNN plans once and every node is the device's, and inputs
and outputs that stay where they are on it; all of them are warmed before the first request.

What is computed is float32 and the same from run to run: TF32 is off, and known answers are
compared in every bucket so closely that it would be noticed; deterministic kernels are asked for
(of cuDNN ONNX Runtime does not ask it: the check compares runs); plans come from cuDNN's
heuristics, not from timings. Another bucket may have other kernels and so other last bits. Where
that matters one bucket can be fixed (`EngineOptions.gpu_bucket`). `precision` says which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.bundle.graphs import GraphSpec, TensorSpec
from service.engine.arrays import Arrays, pad, sizes_of, trim
from service.engine.base import BatchTooLarge, EngineBase
from service.engine.onnxruntime_engine import Session, Sessions, placed_tensor
from service.engine.options import EngineOptions
from service.engine.padding import Buckets, Padding
from service.engine.self_check import Each, float32_problem
from service.errors import DeviceFault, IafvaeError

__all__ = ["CudaEngine", "cuda_options"]

BUCKETS = (16, 64)  # and the largest batch
Memory = Literal["cuda", "cpu"]
Key = tuple[str, tuple[int, ...]]  # an operation, and its sizes in the order N, R


def cuda_options(device: int) -> dict[str, str]:
    """What the CUDA provider is told."""
    return {
        "device_id": str(device),
        "use_tf32": "0",  # on by default
        # By timing, the default, two processes may choose two kernels with other last bits.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


class CudaEngine(EngineBase):
    """Runs the portable graphs of one bundle on one GPU; `changes` replace fields of `options`.

    memory: ``cpu`` goes the same ways in the host's memory, which is how they are tested. Raises
    BundleError for graphs that cannot be computed wholly on the device.
    """

    backend = "onnxruntime"
    concurrency = False

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        memory: Memory = "cuda",
        **changes: Any,
    ) -> None:
        options = replace(options or EngineOptions(), **changes)
        options = replace(options, max_rows=options.gpu_bucket or options.max_rows)
        super().__init__(bundle, options, options.gpu_rows)
        self.provider = self._memory = memory
        self._files = Sessions(bundle)
        self._owner = _owner()
        self.bound: dict[Key, _Bound] = {}
        self.precision += f"; buckets={','.join(map(str, self._sizes()))}"

    def paddings(self) -> Sequence[Padding]:
        """The buckets: few, or the one that was asked for."""
        return [Buckets(self._sizes())]

    def choose_padding(self, each: Each = map) -> tuple[Padding, bool]:
        """With one bucket, rows are checked not to depend on their batch; with several they may."""
        if len(self._sizes()) == 1:
            return super().choose_padding(each)
        return self.paddings()[0], False

    def wrong_answer(self, operation: str, got: Arrays) -> str | None:
        """Also how an answer differs by more than float32 does."""
        problem = super().wrong_answer(operation, got)
        return problem or float32_problem(got, self.bundle.canaries[operation]["out"])

    def compute(self, operation: str, feed: Arrays, shape: Mapping[str, int]) -> list[NDArray[Any]]:
        """Outputs of `operation`, computed by the thread that touches the device."""
        return self._owner.submit(self._compute, operation, feed, shape).result()

    def warm(self) -> None:
        """Make every session, check the canaries, and let go of the bundle's files."""
        super().warm()
        self._files.clear()

    def fault(self, operation: str, error: Exception) -> IafvaeError:
        """BatchTooLarge, DeviceFault where a canary fails as well, else a fault of the rows."""
        fault = super().fault(operation, error)
        if isinstance(fault, BatchTooLarge):
            return fault
        problem = self._device_problem(operation)
        if problem is None:
            return fault
        return DeviceFault(f"the device failed in {operation} ({error}), and then: {problem}")

    def close(self) -> None:
        """Free the sessions; a further run makes them anew."""
        self._owner.submit(self.bound.clear).result()
        self._owner.shutdown()
        self._owner = _owner()
        self._files.clear()

    def _sizes(self) -> tuple[int, ...]:
        if self.options.gpu_bucket is not None:
            return (self.max_rows,)
        return tuple(sorted({min(size, self.max_rows) for size in (*BUCKETS, self.max_rows)}))

    def _compute(
        self, operation: str, feed: Arrays, shape: Mapping[str, int]
    ) -> list[NDArray[Any]]:
        key = operation, tuple(shape[name] for name in sorted(shape))
        bound = self.bound.get(key)
        if bound is None:
            cuda = cuda_options(self.options.device) if self._memory == "cuda" else None
            form = self.options.form or "portable"
            session = self._files.make(operation, form, cuda=cuda, shape=shape)
            place = self._memory, self.options.device if cuda else 0
            graph = self.bundle.manifest.graphs[operation]
            bound = self.bound[key] = _Bound(session, graph, shape, place)
        return bound.run(feed)

    def _device_problem(self, operation: str) -> str | None:
        """Why the canary of `operation` fails now (a lost device fails every run), or None."""
        graph, canary = self.bundle.manifest.graphs[operation], self.bundle.canaries[operation]
        sizes = sizes_of(graph, canary["in"])
        shape = self.padding.shape(sizes)
        try:
            outputs = self.compute(operation, pad(graph, canary["in"], shape), shape)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer
            scarce = isinstance(super().fault(operation, error), BatchTooLarge)
            return None if scarce else str(error)  # memory may be another process's
        return self.wrong_answer(operation, trim(graph, outputs, sizes))


class _Bound:
    """A session whose inputs and outputs stay where they are, in the memory `place` of a kind and
    of a device: nothing is allocated for a batch."""

    def __init__(
        self,
        session: Session,
        graph: GraphSpec,
        shape: Mapping[str, int],
        place: tuple[Memory, int],
    ) -> None:
        self.session, self._binding = session, session.io_binding()

        def placed(tensor: TensorSpec) -> Any:
            sizes = tuple(shape[d] if isinstance(d, str) else d for d in tensor.shape)
            return placed_tensor(sizes, tensor.dtype, *place)

        self._inputs = {t.name: placed(t) for t in graph.inputs}
        self._outputs = {t.name: placed(t) for t in graph.outputs}
        for name, tensor in self._inputs.items():
            self._binding.bind_ortvalue_input(name, tensor)
        for name, tensor in self._outputs.items():
            self._binding.bind_ortvalue_output(name, tensor)

    def run(self, feed: Arrays) -> list[NDArray[Any]]:
        """Copy `feed` to the device, compute, and copy the outputs back."""
        for name, tensor in self._inputs.items():
            tensor.update_inplace(np.ascontiguousarray(feed[name]))
        self.compute()
        found = [tensor.numpy() for tensor in self._outputs.values()]
        # On a CPU they are views, which the next batch would overwrite.
        return [array if array.flags.owndata else array.copy() for array in found]

    def compute(self) -> None:
        """Compute from the inputs that are on the device already."""
        self.session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()


def _owner() -> ThreadPoolExecutor:
    """The one thread that touches the device; started at the first call."""
    return ThreadPoolExecutor(1, "gpu-owner")
