"""The engine on ONNX Runtime, and the only importer of onnxruntime.

On CPU one session of one thread an operation is shared by as many callers as there are cores:
several one-thread runs in flight beat one run of many threads, and cost less. On a GPU a session
remembers the plan of one shape, so batches are padded to few sizes, and each size of each
operation has a session of its own, over the same weights. What ONNX Runtime's CPU kernels are slow
at is written in other operators there (`service.graph_rewrite`).

The bytes of a row must not depend on its batch. Measured on ONNX Runtime's CPU kernels:
convolutions and matrix products never do (also for one row), but element-wise functions (Elu,
Softplus, Log, Exp) round the last elements of an array, those that do not fill a vector,
differently, and so do sums over rows that do not start at a vector's boundary. Graphs whose
widths are multiples of 16 have neither. The manifest says to which multiple of rows batches must
be padded (`row_block`, 1 for such graphs); `warm` compares rows alone and in company, and takes
larger blocks if they differ.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ONNX Runtime reports its use to its makers unless told not to before it is loaded: a server
# sends nothing to anybody that its operator did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from service.bundle import Bundle, BundleError
from service.engine.arrays import Arrays
from service.engine.base import EngineBase, EngineOptions, Provider
from service.engine.graph_rewrite import in_vectors
from service.engine.hardware import cuda_driver_problem, library_problem
from service.engine.initializers import external_tensors
from service.engine.padding import Buckets, Padding, RowBlocks
from service.engine.providers import (
    DEVICE_PRECISIONS,
    SessionPlan,
    computes_with_tensorrt,
    device_providers,
    memory_shares,
    shape_key,
    shape_profile,
)
from service.engine.sessions import BoundLane, Lane, Session, SharedLane
from service.errors import ProviderUnavailable

__all__ = ["Engine", "Provider"]

logger = logging.getLogger(__name__)

# A batch of 8 rows has nearly all that batching gives on a CPU; small ones keep small requests
# quick.
CPU_ROWS = 32
GPU_ROWS = 256
GPU_BUCKETS = (16, 64)  # and the largest batch
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
CPU_PROVIDERS = ["CPUExecutionProvider"]
EXECUTION_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class Engine(EngineBase):
    """Runs the graphs of one bundle with ONNX Runtime; `changes` replace fields of `options`.

    Raises BundleError for graphs that it cannot load, and ProviderUnavailable for a provider, or a
    sampling precision, that is not there.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(bundle, replace(options or EngineOptions(), **changes))
        self._files: dict[str, bytes] = {}
        self._weights: dict[tuple[int, int, tuple[int, ...]], Any] = {}
        self.provider = self._found(self.options.provider)
        self._check_precision()
        self._lane: Lane
        if self.provider == "cpu":
            self._lane = SharedLane(self._session)
        else:
            self._lane = self.bound_lane("cuda")
        self.concurrency = self._lane.concurrency
        self.settle(CPU_ROWS if self.provider == "cpu" else GPU_ROWS)

    def provider_of(self, operation: str) -> str:
        """As `EngineBase.provider_of`: TensorRT leaves densities to CUDA."""
        if self.provider == "tensorrt" and not computes_with_tensorrt("tensorrt", operation):
            return "cuda"
        return self.provider

    def paddings(self) -> Sequence[Padding]:
        """As `EngineBase.paddings`."""
        if self.provider == "cpu":
            stated = self.bundle.manifest.row_block
            return [RowBlocks(block) for block in (1, 2, 4, 8, 16) if block >= stated]
        steps = sorted({min(size, self.max_rows) for size in (*GPU_BUCKETS, self.max_rows)})
        return [Buckets(tuple(steps)), Buckets((self.max_rows,))]

    def compute(
        self, operation: str, feed: Arrays, shape: Mapping[str, int], *, exact: bool = False
    ) -> list[NDArray[Any]]:
        """As `EngineBase.compute`."""
        graph = self.bundle.manifest.graphs[operation]
        exact = exact and self.precision_of(operation) != self.precision
        return self._lane.run(operation, graph, feed, shape, exact)

    def warm(self) -> None:
        """As `EngineBase.warm`."""
        super().warm()
        if isinstance(self._lane, BoundLane):
            self._lane.keep(self._planned())  # what was tried on the way held memory, too
        self._files.clear()

    def close(self) -> None:
        """As `EngineBase.close`."""
        self._lane.clear()
        self._weights.clear()
        self._files.clear()

    def bound_lane(self, device: str) -> BoundLane:
        """Sessions of one shape each on ONNX Runtime's device "cuda", or on "cpu" to try them."""

        def value(shape: tuple[int, ...], dtype: str) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), np.dtype(dtype).type, device, 0
            )

        def make(operation: str, shape: Mapping[str, int], exact: bool) -> Session:
            plan = self._plan(operation, shape, exact)
            providers = (
                device_providers(self.provider, self.options, plan)
                if device == "cuda"
                else CPU_PROVIDERS
            )
            return self._create(operation, providers, device)

        return BoundLane(make, value)

    def _plan(self, operation: str, shape: Mapping[str, int], exact: bool) -> SessionPlan:
        key = operation, shape_key(shape)
        budget = self.options.gpu_memory_bytes
        shares = memory_shares(budget, [*self._planned(), key]) if budget is not None else {}
        return SessionPlan(
            operation=operation,
            exact=exact,
            memory_bytes=shares.get(key),
            profile=shape_profile(self.bundle.manifest.graphs[operation], shape),
            name="-".join((self.bundle.hash[:16], operation, *map(str, key[1]))),
        )

    def _planned(self) -> list[tuple[str, tuple[int, ...]]]:
        """Every session that serving needs, by operation and shape."""
        if not isinstance(self.padding, Buckets):
            return []
        return [
            (operation, shape_key(shape))
            for operation, graph in self.bundle.manifest.graphs.items()
            for shape in self.padding.shapes({str(t.shape[0]) for t in graph.inputs})
        ]

    def _found(self, demand: Provider) -> str:
        """The provider that a session really got, after one was made."""
        if demand == "cpu":
            return "cpu"
        wanted = "cuda" if demand == "auto" else demand
        problem = _gpu_problem(wanted)
        if problem is None:
            plan = self._plan("sample", {"N": 1}, exact=False)
            session = self._create("sample", device_providers(wanted, self.options, plan), None)
            if EXECUTION_PROVIDERS[wanted] in session.get_providers():
                return wanted
            problem = "ONNX Runtime fell back to another provider"
        if demand != "auto":
            raise ProviderUnavailable(
                f"{demand} was demanded but {problem}: install iafvae[cuda] on a machine with an"
                " NVIDIA GPU and its driver, or set the provider to auto or cpu"
            )
        logger.info("computing on the CPU: %s", problem)
        return "cpu"

    def _check_precision(self) -> None:
        wanted, there = self.options.sampling_precision, DEVICE_PRECISIONS[self.provider]
        if wanted not in there:
            raise ProviderUnavailable(
                f"ONNX Runtime's {self.provider} provider cannot sample in {wanted}, only in"
                f" {', '.join(there)}: set IAFVAE_SAMPLING_PRECISION to one of these"
            )

    def _session(self, operation: str) -> Session:
        return self._create(operation, CPU_PROVIDERS, None)

    def _create(self, operation: str, providers: list[Any], share: str | None) -> Session:
        """A session of `operation`; share: the device on which weights are held in common."""
        graph, weights = self.bundle.manifest.graphs[operation], self.bundle.manifest.weights_file
        model, blob = self._read(graph.file), self._read(weights)
        options = _session_options(self.options.threads)
        # From memory: ONNX Runtime maps a weights file, and a mapped file that is overwritten in
        # place ends the process (SIGBUS). It copies what it keeps.
        options.add_external_initializers_from_files_in_memory([weights], [blob], [len(blob)])
        options.add_session_config_entry(EXTERNAL_FOLDER, str(self.bundle.path.resolve()))
        try:
            if providers == CPU_PROVIDERS and self.precision == "float32":
                model = in_vectors(model)
            if share is not None:
                self._share_weights(options, model, blob, share)
            session: Session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"bundle {self.bundle.path}: {graph.file}: ONNX Runtime {ort.__version__} cannot"
                f" load it ({error}); export the bundle again"
            ) from error
        return session

    def _share_weights(self, options: Any, model: bytes, blob: bytes, device: str) -> None:
        """Have a session use weights that lie on `device` once for all sessions.

        ONNX Runtime takes them where it planned to hold the weight on the same device, and its own
        copy elsewhere (also of weights that it has folded or laid out anew).
        """
        for tensor in external_tensors(model):
            place = tensor.offset, tensor.length, tensor.shape
            value = self._weights.get(place)
            if value is None:
                value = ort.OrtValue.ortvalue_from_numpy(tensor.read(blob), device, 0)
                self._weights[place] = value
            options.add_initializer(tensor.name, value)

    def _read(self, name: str) -> bytes:
        """A file of the bundle, held while sessions are made of it."""
        if name not in self._files:
            self._files[name] = self.bundle.read(name)
        return self._files[name]


def _gpu_problem(provider: str) -> str | None:
    """Why a GPU is out of the question; asking ONNX Runtime alone is not enough (it names CUDA
    always)."""
    if EXECUTION_PROVIDERS[provider] not in ort.get_available_providers():
        return f"this build of ONNX Runtime has no {provider} provider"
    if problem := cuda_driver_problem():
        return problem
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    major = str(ort.cuda_version).split(".", maxsplit=1)[0]
    return library_problem(major, tensorrt=provider == "tensorrt")


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # A plan is remembered for every shape that was met: with ragged batches, memory without end.
    options.enable_mem_pattern = False
    for pool in ("intra", "inter"):
        # Spinning threads quadruple the CPU that a little-used server costs.
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options
