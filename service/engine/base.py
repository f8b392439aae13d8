"""The small protocol behind which backends compute: one operation on one batch, and how to warm it.

A backend says how it computes padded arrays and which paddings it would like; everything else, and
all that the service relies on, is here: inputs are checked, known answers are reproduced before
anything is served, and the bytes of a row do not depend on its batch.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from service.bundle import Bundle, BundleError
from service.engine.arrays import Arrays, check, pad, trim, zeros
from service.engine.options import BackendName, Precision, Provider
from service.engine.padding import Buckets, Padding
from service.engine.self_check import canary_problem, invariant, sampling_difference
from service.errors import DeviceFault, EngineFailure, IafvaeError, ProviderUnavailable

__all__ = [
    "SAMPLING",
    "BackendName",
    "EngineBase",
    "EngineOptions",
    "Precision",
    "Provider",
    "translate",
]

logger = logging.getLogger(__name__)

# The operations that may be computed in less than float32: densities never are.
SAMPLING = ("sample", "decode")
# Pixels of a mean, from 0 to 1, may differ by one level of 255 from those of float32.
SAMPLING_TOLERANCE = 1.0 / 255.0
DEVICE_WORDS = (
    "cuda",
    "cublas",
    "cudnn",
    "tensorrt",
    "out of memory",
    "bad_alloc",
    "failed to allocate",
)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What computes, and within which limits.

    provider: ``auto`` uses CUDA where it really works, ``cuda`` and ``tensorrt`` demand it
    (ProviderUnavailable otherwise), ``cpu`` never tries; threads: of one run on CPU; streams: runs
    at once on CPU; max_rows: largest batch, None for the backend's default; sampling_precision: of
    `SAMPLING` alone, taken only where its images are float32's; gpu_memory_bytes: for all sessions
    of a bundle on its device together, None for no limit; cuda_graphs: replay each batch as one
    launch; engine_cache: where TensorRT keeps what it has built.
    """

    backend: BackendName = "onnxruntime"
    provider: Provider = "auto"
    threads: int = 1
    streams: int = 1
    max_rows: int | None = None
    sampling_precision: Precision = "float32"
    gpu_memory_bytes: int | None = None
    cuda_graphs: bool = False
    engine_cache: Path | None = None


class EngineBase(ABC):
    """Runs the graphs of one bundle. Call `warm` once before `run`, and `close` at the end.

    Attributes: `backend` is the library, `provider` what it really computes on ("cpu", "cuda",
    "tensorrt", "openvino"), `precision` that of densities; `concurrency` is True where `run` gains
    from several threads at once; `padding` the policy in use; `invariant` whether `warm` found
    rows to be independent of their batch.
    """

    backend: ClassVar[str]
    provider: str
    concurrency: bool = True

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.bundle, self.options = bundle, options
        self.precision = bundle.manifest.precision
        self.max_rows = 0
        self.padding: Padding = Buckets(())
        self.invariant = False

    def settle(self, default_rows: int) -> None:
        """Called by a backend that knows what it computes on; default_rows: its largest batch."""
        canaries = [len(a) for c in self.bundle.canaries.values() for a in c["in"].values()]
        self.max_rows = max(self.options.max_rows or default_rows, *canaries)
        self.padding = self.paddings()[0]

    @abstractmethod
    def paddings(self) -> Sequence[Padding]:
        """Policies in order of preference: the first that keeps rows independent is used."""

    @abstractmethod
    def compute(
        self, operation: str, feed: Arrays, shape: Mapping[str, int], *, exact: bool = False
    ) -> list[NDArray[Any]]:
        """Outputs of `operation` in the graph's order; thread-safe.

        feed: the graph's inputs with ``shape["N"]`` and ``shape["R"]`` rows; exact: in float32
        whatever `options.sampling_precision`. May raise anything; `run` translates it.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held for the bundle; for when nothing runs any more."""

    def provider_of(self, operation: str) -> str:  # noqa: ARG002 - some backends mix
        """On what `operation` is computed."""
        return self.provider

    def precision_of(self, operation: str) -> str:
        """In which precision `operation` is computed."""
        reduced = self.options.sampling_precision
        return reduced if operation in SAMPLING and reduced != "float32" else self.precision

    def run(self, operation: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs of `operation` by name; inputs as the bundle's manifest states them.

        Thread-safe. Raises WrongShape, WrongDtype, InvalidInput or PayloadTooLarge for inputs
        that do not fit the graph, EngineFailure where the run fails and DeviceFault where the
        device does.
        """
        return self._run(operation, arrays, self.padding, self.max_rows)

    def padded_rows(self, rows: int) -> int:
        """How many rows are computed for nothing in a batch of `rows`."""
        return self.padding.size(rows) - rows

    def warm(self) -> None:
        """Make ready: known answers, a padding that keeps rows independent, every bucket.

        Raises BundleError where the canaries' outputs are not reproduced on this machine, and
        ProviderUnavailable where samples in the precision that was asked for are not float32's.
        """
        self._check_canaries()
        self._check_sampling()
        self.padding, self.invariant = self._choose_padding()
        if not self.invariant:
            logger.warning(
                "rows of %s depend on their batch on this machine: the same seed may give other"
                " last bits in other company; export the model with widths of multiples of 16",
                self.bundle.manifest.name,
            )
        if isinstance(self.padding, Buckets):
            self._warm_buckets(self.padding)

    def _check_canaries(self) -> None:
        spec = self.bundle.manifest.canaries
        for operation, canary in self.bundle.canaries.items():
            try:
                got = self._run(operation, canary["in"], self.padding, self.max_rows, exact=True)
                problem = canary_problem(got, canary["out"], spec.rtol, spec.atol)
            except IafvaeError as error:
                problem = str(error)
            if problem:
                raise BundleError(
                    f"bundle {self.bundle.path}: {spec.file}: {operation} on this machine's"
                    f" {self.provider}: {problem}; export the bundle again, or choose another"
                    " provider"
                )

    def _check_sampling(self) -> None:
        """Samples in reduced precision against float32's, on noise of the service's own."""
        reduced = self.options.sampling_precision
        if reduced == "float32":
            return

        def run(operation: str, arrays: Arrays, exact: bool) -> Arrays:
            return self._run(operation, arrays, self.padding, self.max_rows, exact=exact)

        graphs = {name: self.bundle.manifest.graphs[name] for name in SAMPLING}
        difference = sampling_difference(graphs, run, self.max_rows)
        if not difference <= SAMPLING_TOLERANCE:  # also where it is no number
            raise ProviderUnavailable(
                f"{self.bundle.manifest.name}: means in {reduced} differ from float32's by up to"
                f" {difference:.2g} (at most {SAMPLING_TOLERANCE:.2g} is taken): set"
                " IAFVAE_SAMPLING_PRECISION to float32"
            )

    def _choose_padding(self) -> tuple[Padding, bool]:
        graphs = self.bundle.manifest.graphs
        candidates = self.paddings()
        for padding in candidates:

            def run(operation: str, arrays: Arrays, padding: Padding = padding) -> Arrays:
                return self._run(operation, arrays, padding, 2 * self.max_rows)

            if invariant(graphs, run, self.max_rows):
                return padding, True
        return candidates[-1], False

    def _warm_buckets(self, buckets: Buckets) -> None:
        """Every shape that will be met, the largest first: its memory then holds all others."""
        for operation, graph in self.bundle.manifest.graphs.items():
            for sizes in buckets.shapes({str(tensor.shape[0]) for tensor in graph.inputs}):
                self._run(operation, zeros(graph, sizes), buckets, self.max_rows)

    def _run(
        self,
        operation: str,
        arrays: Mapping[str, NDArray[Any]],
        padding: Padding,
        max_rows: int,
        *,
        exact: bool = False,
    ) -> Arrays:
        graph = self.bundle.manifest.graphs[operation]
        sizes = check(graph, arrays, max_rows)
        shape = padding.shape(sizes)
        feed = pad(graph, arrays, shape)
        try:
            outputs = self.compute(operation, feed, shape, exact=exact)
        except (IafvaeError, BundleError):
            raise
        except MemoryError as error:
            raise DeviceFault(f"out of memory in {operation}") from error
        except Exception as error:  # the backends' exceptions have no common base
            raise translate(operation, error) from error
        return trim(graph, outputs, sizes)


def translate(operation: str, error: Exception) -> IafvaeError:
    """A failure of a run, or of the device if it speaks of one."""
    text = str(error)
    if any(word in text.lower() for word in DEVICE_WORDS):
        return DeviceFault(f"the device failed in {operation}: {text}")
    return EngineFailure(f"{operation} failed: {text}")
