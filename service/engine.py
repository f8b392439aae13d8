"""The engine: runs one operation on one batch. The only importer of onnxruntime.

On CPU one session of one thread an operation is shared by as many callers as there are cores:
several one-thread runs in flight beat one run of many threads, and cost less. On CUDA a session
remembers the plan of one shape, so batches are padded to few sizes, and each size of each
operation has a session of its own.

The bytes of a row must not depend on its batch. Measured on ONNX Runtime's CPU kernels:
convolutions and matrix products never do (also for one row), but element-wise functions (Elu,
Softplus, Log, Exp) round the last elements of an array, those that do not fill a vector,
differently, and so do sums over rows that do not start at a vector's boundary. Graphs whose
widths are multiples of 16 have neither. The manifest says to which multiple of rows batches must
be padded (`row_block`, 1 for such graphs); `Engine.warm` compares rows alone and in company, and
takes larger blocks if they differ.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

# ONNX Runtime reports its use to its makers unless told not to before it is loaded: a server
# sends nothing to anybody that its operator did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from service.batch import Arrays, check, pad, trim, zeros
from service.bundle import Bundle, BundleError
from service.errors import (
    DeviceFault,
    EngineFailure,
    IafvaeError,
    ProviderUnavailable,
)
from service.hardware import cuda_driver_problem, library_problem
from service.padding import Buckets, Padding, RowBlocks
from service.probe import canary_problem, invariant

__all__ = ["Engine", "Provider"]

logger = logging.getLogger(__name__)

Provider = Literal["auto", "cpu", "cuda"]

# A batch of 8 rows has nearly all that batching gives on a CPU; small ones keep small requests
# quick.
CPU_ROWS = 32
CUDA_ROWS = 256
DEVICE_WORDS = ("cuda", "cublas", "cudnn", "out of memory", "bad_alloc", "failed to allocate")


class _Session(Protocol):
    def run(self, outputs: list[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...
    def get_providers(self) -> list[str]: ...


class Engine:
    """Runs the graphs of one bundle.

    provider: ``auto`` uses CUDA where it really works, ``cuda`` demands it (ProviderUnavailable
    otherwise), ``cpu`` never tries; threads: of one run on CPU; max_rows: largest batch, None for
    the provider's default. Call `warm` once before `run`.

    Attributes: `provider` is what the sessions really run on ("cpu" or "cuda"); `concurrency` is
    True where `run` gains from several threads at once; `padding` the policy in use; `invariant`
    whether `warm` found rows to be independent of their batch.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Provider = "auto",
        threads: int = 1,
        max_rows: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.precision = bundle.manifest.precision
        self._threads = threads
        self._sessions: dict[tuple[object, ...], _Session] = {}
        self._creating = threading.Lock()
        self._device = threading.Lock()
        self.provider = self._settle(provider)
        canaries = [len(a) for c in bundle.canaries.values() for a in c["in"].values()]
        self.max_rows = max(max_rows or _preferred_rows(self.provider), *canaries)
        self.concurrency = self.provider == "cpu"
        self.padding: Padding = self._paddings()[0]
        self.invariant = False

    def run(self, operation: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs of `operation` by name; inputs as the bundle's manifest states them.

        Thread-safe. Raises WrongShape, WrongDtype, InvalidInput or PayloadTooLarge for inputs
        that do not fit the graph, EngineFailure where the run fails and DeviceFault where the
        device does.
        """
        graph = self.bundle.manifest.graphs[operation]
        sizes = check(graph, arrays, self.max_rows)
        return self._run_padded(operation, arrays, sizes, self.padding)

    def padded_rows(self, rows: int) -> int:
        """How many rows are computed for nothing in a batch of `rows`."""
        return self.padding.size(rows) - rows

    def warm(self) -> None:
        """Make ready: known answers, a padding that keeps rows independent, the largest batch.

        Raises BundleError where the canaries' outputs are not reproduced on this machine.
        """
        self._check_canaries()
        self.padding, self.invariant = self._choose_padding()
        if not self.invariant:
            logger.warning(
                "rows of %s depend on their batch on this machine: the same seed may give other"
                " last bits in other company; export the model with widths of multiples of 16",
                self.bundle.manifest.name,
            )
        if isinstance(self.padding, Buckets):
            self._warm_buckets(self.padding)

    def _settle(self, demand: Provider) -> str:
        """The provider that a session really got, after one was made."""
        problem = None if demand == "cpu" else _cuda_problem()
        if demand != "cpu" and problem is None:
            session = self._create("sample", "cuda")
            if "CUDAExecutionProvider" in session.get_providers():
                return "cuda"
            problem = "ONNX Runtime fell back to the CPU"
        if demand == "cuda":
            raise ProviderUnavailable(
                f"CUDA was demanded but {problem}: install iafvae[cuda] on a machine with an NVIDIA"
                " GPU and its driver, or set the provider to auto or cpu"
            )
        if demand == "auto":
            logger.info("computing on the CPU: %s", problem)
        return "cpu"

    def _paddings(self) -> list[Padding]:
        """Policies in order of preference: the first that keeps rows independent is used."""
        if self.provider == "cpu":
            stated = self.bundle.manifest.row_block
            return [RowBlocks(block) for block in (1, 2, 4, 8, 16) if block >= stated]
        steps = sorted({min(size, self.max_rows) for size in (16, 64, self.max_rows)})
        return [Buckets(tuple(steps)), Buckets((self.max_rows,))]

    def _check_canaries(self) -> None:
        spec = self.bundle.manifest.canaries
        for operation, canary in self.bundle.canaries.items():
            try:
                got = self.run(operation, canary["in"])
                problem = canary_problem(got, canary["out"], spec.rtol, spec.atol)
            except IafvaeError as error:
                problem = str(error)
            if problem:
                raise BundleError(
                    f"bundle {self.bundle.path}: {spec.file}: {operation} on this machine's"
                    f" {self.provider}: {problem}; export the bundle again, or choose another"
                    " provider"
                )

    def _choose_padding(self) -> tuple[Padding, bool]:
        graphs = self.bundle.manifest.graphs
        for padding in self._paddings():

            def run(operation: str, arrays: Arrays, padding: Padding = padding) -> Arrays:
                sizes = check(graphs[operation], arrays, 2 * self.max_rows)
                return self._run_padded(operation, arrays, sizes, padding)

            if invariant(graphs, run, self.max_rows):
                return padding, True
            if self.provider == "cuda":
                self._sessions.clear()
        return padding, False

    def _warm_buckets(self, buckets: Buckets) -> None:
        """Every shape that will be met: pairs of buckets where a graph has both N and R."""
        for operation, graph in self.bundle.manifest.graphs.items():
            dims = {str(tensor.shape[0]) for tensor in graph.inputs}
            for rows in buckets.sizes:
                for images in buckets.sizes if dims == {"N", "R"} else (rows,):
                    sizes = {"N": images, "R": rows}
                    self._run_padded(operation, zeros(graph, sizes), sizes, buckets)

    def _run_padded(
        self,
        operation: str,
        arrays: Mapping[str, NDArray[Any]],
        sizes: Mapping[str, int],
        padding: Padding,
    ) -> Arrays:
        graph = self.bundle.manifest.graphs[operation]
        shape = {name: padding.size(rows) for name, rows in sizes.items()}
        session = self._session(operation, shape)
        feed = pad(graph, arrays, shape)
        names = [tensor.name for tensor in graph.outputs]
        try:
            if self.concurrency:
                outputs = session.run(names, feed)
            else:
                with self._device:
                    outputs = session.run(names, feed)
        except MemoryError as error:
            raise DeviceFault(f"out of memory in {operation}") from error
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _translate(operation, error) from error
        return trim(graph, outputs, sizes)

    def _session(self, operation: str, shape: Mapping[str, int]) -> _Session:
        key: tuple[object, ...] = (
            (operation,) if self.provider == "cpu" else (operation, *shape.values())
        )
        session = self._sessions.get(key)
        if session is None:
            with self._creating:
                session = self._sessions.get(key) or self._create(operation, self.provider)
                self._sessions[key] = session
        return session

    def _create(self, operation: str, provider: str) -> _Session:
        graph = self.bundle.manifest.graphs[operation]
        try:
            session: _Session = ort.InferenceSession(
                str(self.bundle.path / graph.file),
                _session_options(self._threads),
                providers=_providers(provider),
            )
        except Exception as error:  # as above
            raise BundleError(
                f"bundle {self.bundle.path}: {graph.file}: ONNX Runtime {ort.__version__} cannot"
                f" load it ({error}); export the bundle again"
            ) from error
        return session


def _preferred_rows(provider: str) -> int:
    """Rows of a batch beyond which `provider` gains next to nothing."""
    return CPU_ROWS if provider == "cpu" else CUDA_ROWS


def _cuda_problem() -> str | None:
    """Why CUDA is out of the question; asking ONNX Runtime alone is not enough (it names CUDA
    always)."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
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
    options.log_severity_level = 3
    # A plan is remembered for every shape that was met: with ragged batches, memory without end.
    options.enable_mem_pattern = False
    for pool in ("intra", "inter"):
        # Spinning threads quadruple the CPU that a little-used server costs.
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options


def _providers(provider: str) -> list[Any]:
    if provider == "cpu":
        return ["CPUExecutionProvider"]
    cuda = {
        "use_tf32": "0",  # densities are float32
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _translate(operation: str, error: Exception) -> IafvaeError:
    text = str(error)
    if any(word in text.lower() for word in DEVICE_WORDS):
        return DeviceFault(f"the device failed in {operation}: {text}")
    return EngineFailure(f"{operation} failed: {text}")
