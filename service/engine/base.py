"""One operation on one batch, and how to warm it: what of an engine needs no runtime.

A runtime says how it computes padded arrays and which paddings it would like; everything else, and
all that the service relies on, is here: inputs are checked, known answers are reproduced before
anything is served, and the bytes of a row do not depend on its batch.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray

from service.bundle import Bundle, BundleError
from service.engine.arrays import Arrays, check, in_halves, pad, sizes_of, trim, zeros
from service.engine.hardware import available_cores
from service.engine.options import EngineOptions
from service.engine.padding import Buckets, Padding
from service.engine.self_check import Each, canary_problem, invariant
from service.errors import EngineFailure, IafvaeError

__all__ = ["BatchTooLarge", "EngineBase", "is_out_of_memory"]

logger = logging.getLogger(__name__)

# ONNX Runtime's arena, the CUDA runtime (2 is cudaErrorMemoryAllocation), cuBLAS and cuDNN.
OUT_OF_MEMORY = re.compile(
    r"[Ff]ailed to allocate memory|Available memory of \d+ is smaller|bad_alloc|bad allocation"
    r"|CUDA failure 2:|_ALLOC(ATION)?_FAILED"
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime's error says that there is no memory, the host's or a device's."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


class BatchTooLarge(EngineFailure, MemoryError):  # noqa: N818 - named as its kind
    """There is no memory for a batch of so many rows, or for its session; nothing is broken."""


class EngineBase(ABC):
    """Runs the graphs of one bundle. Call `warm` once before `run`, and `close` at the end.

    Attributes: `backend` is the library, `provider` what it really computes on ("cpu" or "cuda"),
    `precision` the bundle's; `concurrency` is True where `run` gains from several threads at once;
    `padding` the policy in use; `invariant` whether `warm` found rows to be independent of their
    batch.
    """

    backend: ClassVar[str]
    provider: str
    concurrency: bool = True

    def __init__(self, bundle: Bundle, options: EngineOptions, default_rows: int) -> None:
        self.bundle, self.options = bundle, options
        self.precision = bundle.manifest.precision
        canaries = [len(a) for c in bundle.canaries.values() for a in c["in"].values()]
        self.max_rows = max(options.max_rows or default_rows, *canaries)
        self.padding = self.paddings()[0]
        self.invariant = False

    @abstractmethod
    def paddings(self) -> Sequence[Padding]:
        """Policies in order of preference: the first that keeps rows independent is used."""

    @abstractmethod
    def compute(self, operation: str, feed: Arrays, shape: Mapping[str, int]) -> list[NDArray[Any]]:
        """Outputs of `operation` in the graph's order; thread-safe.

        feed: the graph's inputs with ``shape["N"]`` and ``shape["R"]`` rows. May raise anything;
        `run` translates it.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held for the bundle; for when nothing runs any more."""

    def run(
        self, operation: str, arrays: Mapping[str, NDArray[Any]], padding: Padding | None = None
    ) -> Arrays:
        """Outputs of `operation` by name; inputs as the bundle's manifest states them.

        padding: another than that in use.

        Thread-safe. A batch that memory does not hold is computed in halves. Raises WrongShape,
        WrongDtype, InvalidInput or PayloadTooLarge for inputs that do not fit the graph,
        EngineFailure where the run fails and DeviceFault where the device does.
        """
        padding = padding or self.padding
        graph = self.bundle.manifest.graphs[operation]
        sizes = check(graph, arrays, self.max_rows)
        shape = padding.shape(sizes)
        try:
            if shape == sizes:
                found = self.compute(operation, dict(arrays), shape)
                return dict(zip(graph.output_names, found, strict=True))
            found = self.compute(operation, pad(graph, arrays, shape), shape)
            return trim(graph, found, sizes)
        except (IafvaeError, BundleError):
            raise
        except Exception as error:  # the runtime's exceptions have no common base
            fault = self.fault(operation, error)
            rows = max(sizes.values())
            shrinks = rows > 1 and padding.size(1) < padding.size(rows)
            if not (shrinks and isinstance(fault, BatchTooLarge)):
                raise fault from error
            logger.warning("%s: computed in halves", fault)
        # Only here, where the failed try has let go of its memory.
        return in_halves(graph, arrays, partial(self.run, operation, padding=padding))

    def padded_rows(self, rows: int) -> int:
        """How many rows are computed for nothing in a batch of `rows`."""
        return self.padding.size(rows) - rows

    def warm(self) -> None:
        """Make ready: known answers, a padding that keeps rows independent, every bucket.

        Raises BundleError where the canaries' outputs are not reproduced on this machine, and
        BatchTooLarge where there is no memory for them.
        """
        # An operation a thread, where that is quicker: making a session takes long, too.
        with ThreadPoolExecutor(available_cores() if self.concurrency else 1) as pool:
            list(pool.map(lambda name: self._check_canary(name, {}), self.bundle.canaries))
            self.padding, self.invariant = self.choose_padding(pool.map)
        if not isinstance(self.padding, Buckets):
            return
        # Every shape that will be met, the largest first: where they share memory (on the host) it
        # then holds all others. Each has plans of its own, and gives the known answer too.
        for operation, graph in self.bundle.manifest.graphs.items():
            for sizes in self.padding.shapes({str(tensor.shape[0]) for tensor in graph.inputs}):
                self.run(operation, zeros(graph, sizes))
                self._check_canary(operation, sizes)

    def _check_canary(self, operation: str, shape: Mapping[str, int]) -> None:
        """The known answer, in a batch of so many rows or of no more than its own."""
        graph, given = self.bundle.manifest.graphs[operation], self.bundle.canaries[operation]["in"]
        sizes = sizes_of(graph, given)
        rows = {name: max(size, shape.get(name, 0)) for name, size in sizes.items()}
        try:
            got = self.run(operation, pad(graph, given, rows))
            problem = self.wrong_answer(operation, trim(graph, list(got.values()), sizes))
        except BatchTooLarge:  # no fault of the bundle, and it may pass
            raise
        except IafvaeError as error:
            problem = str(error)
        if problem:
            raise BundleError(
                f"bundle {self.bundle.path}: {self.bundle.manifest.canaries.file}: {operation} on"
                f" this machine's {self.provider}: {problem}; export the bundle again, or choose"
                " another provider"
            )

    def wrong_answer(self, operation: str, got: Arrays) -> str | None:
        """How what was computed of an operation's canary differs from its answer, or None."""
        spec = self.bundle.manifest.canaries
        return canary_problem(got, self.bundle.canaries[operation]["out"], spec.rtol, spec.atol)

    def choose_padding(self, each: Each = map) -> tuple[Padding, bool]:
        """The first policy in which rows do not depend on their batch, and whether there is one.

        each: `map`, or one in threads.
        """
        graphs = self.bundle.manifest.graphs
        candidates = self.paddings()
        for padding in candidates:
            run = partial(self.run, padding=padding)
            if invariant(graphs, run, self.max_rows, each):
                return padding, True
        logger.warning(
            "rows of %s depend on their batch on this machine: the same seed may give other"
            " last bits in other company; export the model with widths of multiples of 16",
            self.bundle.manifest.name,
        )
        return candidates[-1], False

    def fault(self, operation: str, error: Exception) -> IafvaeError:
        """What a failure of a run was: a batch that was too large, or rows that cannot be."""
        if is_out_of_memory(error):
            return BatchTooLarge(f"out of memory in {operation}: {error}")
        return EngineFailure(f"{operation} failed: {error}")
