"""One operation on one batch, and how to warm it: what of an engine needs no runtime.

A runtime says how it computes padded arrays and which paddings it would like; everything else, and
all that the service relies on, is here: inputs are checked, known answers are reproduced before
anything is served, and the bytes of a row do not depend on its batch.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from service.bundle import Bundle, BundleError
from service.engine.arrays import Arrays, check, pad, trim, zeros
from service.engine.options import EngineOptions
from service.engine.padding import Buckets, Padding
from service.engine.self_check import canary_problem, invariant
from service.errors import DeviceFault, EngineFailure, IafvaeError

__all__ = ["EngineBase", "translate"]

logger = logging.getLogger(__name__)

DEVICE_WORDS = ("cuda", "cublas", "cudnn", "out of memory", "bad_alloc", "failed to allocate")


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

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self.bundle, self.options = bundle, options
        self.precision = bundle.manifest.precision
        self.max_rows = 0
        self.padding: Padding = Buckets(())
        self.invariant = False

    def settle(self, default_rows: int) -> None:
        """Called by an engine that knows what it computes on; default_rows: its largest batch."""
        canaries = [len(a) for c in self.bundle.canaries.values() for a in c["in"].values()]
        self.max_rows = max(self.options.max_rows or default_rows, *canaries)
        self.padding = self.paddings()[0]

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

    def _check_canaries(self) -> None:
        spec = self.bundle.manifest.canaries
        for operation, canary in self.bundle.canaries.items():
            try:
                got = self._run(operation, canary["in"], self.padding, self.max_rows)
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
    ) -> Arrays:
        graph = self.bundle.manifest.graphs[operation]
        sizes = check(graph, arrays, max_rows)
        shape = padding.shape(sizes)
        feed = pad(graph, arrays, shape)
        try:
            outputs = self.compute(operation, feed, shape)
        except (IafvaeError, BundleError):
            raise
        except MemoryError as error:
            raise DeviceFault(f"out of memory in {operation}") from error
        except Exception as error:  # the runtime's exceptions have no common base
            raise translate(operation, error) from error
        return trim(graph, outputs, sizes)


def translate(operation: str, error: Exception) -> IafvaeError:
    """A failure of a run, or of the device if it speaks of one."""
    text = str(error)
    if any(word in text.lower() for word in DEVICE_WORDS):
        return DeviceFault(f"the device failed in {operation}: {text}")
    return EngineFailure(f"{operation} failed: {text}")
