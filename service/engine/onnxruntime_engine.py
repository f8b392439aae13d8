"""The engine on ONNX Runtime, and the only importer of onnxruntime.

On CPU one session of one thread an operation is shared by as many callers as there are cores:
several one-thread runs in flight beat one run of many threads, and cost less. On a GPU a session
remembers the plan of one shape, so batches are padded to few sizes, and each size of each
operation has a session of its own. A bundle holds each graph in two forms: the CPU's is written
in what its kernels are fast at. What a session is made of are the bytes that were verified.

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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ONNX Runtime reports its use to its makers unless told not to before it is loaded: a server
# sends nothing to anybody that its operator did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from service.bundle import Bundle, BundleError
from service.engine.arrays import Arrays
from service.engine.base import EngineBase
from service.engine.hardware import cuda_driver_problem, library_problem
from service.engine.options import EngineOptions, Provider
from service.engine.padding import Buckets, Padding, RowBlocks
from service.engine.sessions import (
    BoundSessions,
    Session,
    Sessions,
    SharedSessions,
    shape_key,
)
from service.errors import ProviderUnavailable

__all__ = ["Engine", "gpu_problem"]

logger = logging.getLogger(__name__)

# A batch of 8 rows has nearly all that batching gives on a CPU; small ones keep small requests
# quick.
CPU_ROWS = 32
GPU_ROWS = 256
GPU_BUCKETS = (16, 64)  # and the largest batch
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {
    "use_tf32": "0",  # on by default
    # A plan is found in milliseconds, and again whenever a session's shape changes: with one
    # shape a session, once.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
PROVIDERS: dict[str, list[Any]] = {"cpu": [CPU], "cuda": [(CUDA, CUDA_OPTIONS), CPU]}


class Engine(EngineBase):
    """Runs the graphs of one bundle with ONNX Runtime; `changes` replace fields of `options`.

    Raises BundleError for graphs that it cannot load, and ProviderUnavailable for a provider that
    is not there.
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
        self.provider = self._found(self.options.provider)
        self._sessions: Sessions
        if self.provider == "cpu":
            self._sessions = SharedSessions(self._session)
        else:
            self._sessions = self.bound_sessions("cuda")
        self.concurrency = self._sessions.concurrency
        self.settle(CPU_ROWS if self.provider == "cpu" else GPU_ROWS)

    def paddings(self) -> Sequence[Padding]:
        """On CPU blocks of rows from the manifest's up; on a GPU few buckets, then one alone."""
        if self.provider == "cpu":
            stated = self.bundle.manifest.row_block
            return [RowBlocks(block) for block in (1, 2, 4, 8, 16) if block >= stated]
        steps = sorted({min(size, self.max_rows) for size in (*GPU_BUCKETS, self.max_rows)})
        return [Buckets(tuple(steps)), Buckets((self.max_rows,))]

    def compute(self, operation: str, feed: Arrays, shape: Mapping[str, int]) -> list[NDArray[Any]]:
        """Outputs of `operation`, by the session for it."""
        return self._sessions.run(operation, self.bundle.manifest.graphs[operation], feed, shape)

    def warm(self) -> None:
        """Make ready; what was tried on the way and is not served holds no memory afterwards."""
        super().warm()
        if isinstance(self._sessions, BoundSessions):
            self._sessions.keep(self._planned())
        self._files.clear()

    def close(self) -> None:
        """Free the sessions; a further run makes them anew."""
        self._sessions.clear()
        self._files.clear()

    def bound_sessions(self, device: str) -> BoundSessions:
        """Sessions of one shape each on ONNX Runtime's device "cuda", or on "cpu" to try them."""

        def value(shape: tuple[int, ...], dtype: str) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), np.dtype(dtype).type, device, 0
            )

        return BoundSessions(self._session, value)

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
        problem = gpu_problem()
        if problem is None:
            try:
                self._create("sample", "cuda")
            except (BundleError, ProviderUnavailable) as error:
                problem = str(error)
            else:
                return "cuda"
        if demand == "cuda":
            raise ProviderUnavailable(
                f"cuda was demanded but {problem}: on a machine with an NVIDIA GPU and its driver"
                " pip install '.[cuda]' -c constraints.txt, or set the provider to auto or cpu"
            )
        logger.info("computing on the CPU: %s", problem)
        return "cpu"

    def _session(self, operation: str) -> Session:
        return self._create(operation, self.provider)

    def _create(self, operation: str, provider: str) -> Session:
        manifest, file = self.bundle.manifest, self._graph_file(operation, provider)
        model, blob = self._read(file), self._read(manifest.weights_file)
        options = _session_options(self.options.threads)
        # From memory: ONNX Runtime maps a weights file, and a mapped file that is overwritten in
        # place ends the process (SIGBUS). It copies what it keeps.
        options.add_external_initializers_from_files_in_memory(
            [Path(manifest.weights_file).name], [blob], [len(blob)]
        )
        try:
            # Without ONNX Runtime's own fallback, which computes elsewhere and by other means.
            session: Session = ort.InferenceSession(
                model, options, providers=PROVIDERS[provider], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"bundle {self.bundle.path}: {file}: ONNX Runtime {ort.__version__} cannot"
                f" load it ({error}); export the bundle again"
            ) from error
        if provider == "cuda" and CUDA not in session.get_providers():
            raise ProviderUnavailable("ONNX Runtime fell back to another provider")
        return session

    def _graph_file(self, operation: str, provider: str) -> str:
        """The operation's graph in the form that was chosen, else in the provider's."""
        graph = self.bundle.manifest.graphs[operation]
        form = self.options.form or ("cpu" if provider == "cpu" else "portable")
        return graph.cpu if form == "cpu" else graph.portable

    def _read(self, name: str) -> bytes:
        """A file of the bundle, held while sessions are made of it."""
        if name not in self._files:
            self._files[name] = self.bundle.read(name)
        return self._files[name]


def gpu_problem() -> str | None:
    """Why a GPU is out of the question; asking ONNX Runtime alone is not enough (it names CUDA
    always)."""
    if CUDA not in ort.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider"
    if problem := cuda_driver_problem():
        return problem
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    return library_problem(str(ort.cuda_version).split(".", maxsplit=1)[0])


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # A plan is remembered for every shape that was met: with ragged batches, memory without end.
    options.enable_mem_pattern = False
    for pool in ("intra", "inter"):
        # Spinning threads quadruple the CPU that a little-used server costs.
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options
