"""The engine on ONNX Runtime's CPU, how its sessions are made, and the only importer of
onnxruntime.

On CPU one session of one thread an operation is shared by as many callers as there are cores:
several one-thread runs in flight beat one run of many threads, and cost less. A bundle holds each
graph in two forms: the CPU's is written in what its kernels are fast at. What a session is made of
are the bytes that were verified.

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
import functools
import io
import os
import threading
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
from service.engine.base import BatchTooLarge, EngineBase, is_out_of_memory
from service.engine.hardware import cuda_driver_problem, library_problem
from service.engine.options import EngineOptions, Form
from service.engine.padding import Padding, RowBlocks
from service.errors import ProviderUnavailable

__all__ = ["CPU", "CUDA", "Engine", "Session", "Sessions", "gpu_problem", "placed_tensor"]

# A batch of 8 rows has nearly all that batching gives on a CPU; small ones keep small requests
# quick.
CPU_ROWS = 32
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_FALLBACK = "session.disable_cpu_ep_fallback"
Session = Any  # an `onnxruntime.InferenceSession`, which has no types


class Sessions:
    """Makes sessions of a bundle's graphs; holds the files meanwhile, until `clear`."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget the bundle's files, which are read again when a session is made."""
        self._files.clear()

    def make(
        self,
        operation: str,
        form: Form,
        *,
        threads: int = 1,
        cuda: Mapping[str, str] | None = None,
        shape: Mapping[str, int] | None = None,
    ) -> Session:
        """A session of an operation's graph.

        cuda: options of the CUDA provider, which then computes every node or there is no session;
        None for the CPU; shape: sizes of ``N`` and ``R`` where they are fixed. Raises BundleError
        where the graph cannot be loaded so, BatchTooLarge where there is no memory for it, and
        ProviderUnavailable where something else than what was asked for would compute it.
        """
        graph = self._bundle.manifest.graphs[operation]
        file = graph.cpu if form == "cpu" else graph.portable
        weights = self._bundle.manifest.weights_file
        model, blob = self._read(file), self._read(weights)
        options = _session_options(threads, shape)
        if cuda is None:
            _share_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
        # From memory: ONNX Runtime maps a weights file, and a mapped file that is overwritten in
        # place ends the process (SIGBUS). It copies what it keeps.
        options.add_external_initializers_from_files_in_memory(
            [Path(weights).name], [blob], [len(blob)]
        )
        providers: list[Any] = [CPU] if cuda is None else [(CUDA, dict(cuda))]
        if cuda is not None:
            options.add_session_config_entry(NO_FALLBACK, "1")
        try:
            # Without ONNX Runtime's own fallback, which computes elsewhere and by other means.
            session: Session = ort.InferenceSession(
                model, options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            if is_out_of_memory(error):
                raise BatchTooLarge(f"no memory for {file}: {error}") from error
            raise BundleError(
                f"bundle {self._bundle.path}: {file}: ONNX Runtime {ort.__version__} cannot"
                f" load it ({error}); export the bundle again"
            ) from error
        if cuda is not None:
            _check_provider(session, cuda)
        return session

    def _read(self, name: str) -> bytes:
        """A file of the bundle, held while sessions are made of it."""
        with self._lock:
            if name not in self._files:
                self._files[name] = self._bundle.read(name)
            return self._files[name]


class Engine(EngineBase):
    """Runs the graphs of one bundle on the CPU; `changes` replace fields of `options`.

    Raises BundleError for graphs that it cannot load.
    """

    backend = "onnxruntime"
    provider = "cpu"

    def __init__(
        self, bundle: Bundle, options: EngineOptions | None = None, **changes: Any
    ) -> None:
        super().__init__(bundle, replace(options or EngineOptions(), **changes), CPU_ROWS)
        self._sessions = Sessions(bundle)
        self._locks = {name: threading.Lock() for name in bundle.manifest.graphs}
        self.sessions: dict[str, Session] = {}

    def paddings(self) -> Sequence[Padding]:
        """Blocks of rows from the manifest's up."""
        stated = self.bundle.manifest.row_block
        return [RowBlocks(block) for block in (1, 2, 4, 8, 16) if block >= stated]

    def compute(
        self,
        operation: str,
        feed: Arrays,
        shape: Mapping[str, int],  # noqa: ARG002 - any shape will do
    ) -> list[NDArray[Any]]:
        """Outputs of `operation`, by the session that all threads share."""
        session = self.sessions.get(operation)
        if session is None:
            with self._locks[operation]:
                session = self.sessions.get(operation) or self._sessions.make(
                    operation, self.options.form or "cpu", threads=self.options.threads
                )
                self.sessions[operation] = session
        names = self.bundle.manifest.graphs[operation].output_names
        outputs: list[NDArray[Any]] = session.run(names, feed)
        return outputs

    def warm(self) -> None:
        """Make the sessions, check the canaries, and let go of the bundle's files."""
        super().warm()
        self._sessions.clear()

    def close(self) -> None:
        """Free the sessions; a further run makes them anew."""
        self.sessions.clear()
        self._sessions.clear()


def placed_tensor(shape: Sequence[int], dtype: str, memory: str, device: int) -> Any:
    """An uninitialised ``onnxruntime.OrtValue`` in the memory of "cuda" or "cpu"."""
    kind = np.dtype(dtype).type
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, memory, device)


def gpu_problem(device: int = 0) -> str | None:
    """Why GPU number `device` is out of the question, or None; asking ONNX Runtime alone is not
    enough (it names CUDA always)."""
    if CUDA not in ort.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider"
    wanted = str(ort.cuda_version)
    if problem := cuda_driver_problem(device, wanted):
        return problem
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    return library_problem(wanted.split(".", maxsplit=1)[0])


def _check_provider(session: Session, wanted: Mapping[str, str]) -> None:
    if session.get_providers()[0] != CUDA:
        raise ProviderUnavailable("ONNX Runtime fell back to another provider")
    told = session.get_provider_options()[CUDA]
    for name, value in wanted.items():
        if told.get(name) != value:
            raise ProviderUnavailable(f"ONNX Runtime took {name}={told.get(name)} for {value}")


@functools.cache
def _share_memory() -> None:
    """One arena for the sessions of all bundles on the CPU.

    With one each, every graph keeps the memory of its largest batch: 350 MB for the three bundles
    that ship, in place of 210; and what a bundle leaves behind serves the one that replaces it.
    """
    arena = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", arena, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _session_options(threads: int, shape: Mapping[str, int] | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # A plan is remembered for every shape that was met: with ragged batches, memory without end.
    options.enable_mem_pattern = shape is not None
    # With fixed sizes what computes shapes is folded away: on a GPU it would be left to the CPU.
    for name, size in (shape or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    for pool in ("intra", "inter"):
        # Spinning threads quadruple the CPU that a little-used server costs.
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options
