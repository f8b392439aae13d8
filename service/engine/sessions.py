"""How sessions are used: on a CPU one an operation, shared by all threads; on a GPU one for each
shape, with its inputs and outputs at fixed places of the device's memory.

No library is imported here: sessions and values are made by whoever uses a lane, so that the ways
of a GPU can be gone, and tested, on a CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle.graphs import GraphSpec
from service.engine.arrays import Arrays
from service.engine.providers import Shape, shape_key

__all__ = ["BoundLane", "Lane", "SharedLane"]

Key = tuple[str, Shape, bool]


class Session(Protocol):
    """What is needed of ``onnxruntime.InferenceSession``."""

    def run(self, outputs: list[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute from and to arrays of the host."""
        ...

    def io_binding(self) -> Any:
        """An empty ``onnxruntime.IOBinding``."""
        ...

    def run_with_iobinding(self, binding: Any) -> None:
        """Compute from and to what `binding` names."""
        ...

    def get_providers(self) -> list[str]:
        """Which providers it has, in order."""
        ...


class Lane(Protocol):
    """Sessions, and how they are run."""

    concurrency: bool

    def run(
        self, operation: str, graph: GraphSpec, feed: Arrays, shape: Mapping[str, int], exact: bool
    ) -> list[NDArray[Any]]:
        """Outputs in the graph's order."""
        ...

    def clear(self) -> None:
        """Forget all sessions."""
        ...


class SharedLane:
    """One session an operation, for any shape, run by many threads at once."""

    concurrency = True

    def __init__(self, make: Callable[[str], Session]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.sessions: dict[str, Session] = {}

    def run(
        self,
        operation: str,
        graph: GraphSpec,
        feed: Arrays,
        shape: Mapping[str, int],  # noqa: ARG002 - any shape will do
        exact: bool,  # noqa: ARG002 - there is one precision
    ) -> list[NDArray[Any]]:
        """As `Lane.run`."""
        session = self.sessions.get(operation)
        if session is None:
            with self._lock:
                session = self.sessions.get(operation) or self._make(operation)
                self.sessions[operation] = session
        return session.run([tensor.name for tensor in graph.outputs], feed)

    def clear(self) -> None:
        """As `Lane.clear`."""
        self.sessions.clear()


class BoundLane:
    """A session for each operation and shape, one run at a time.

    make: a session for (operation, shape, exact); value: an uninitialised tensor of (shape, dtype)
    in the device's memory, as ``onnxruntime.OrtValue``.
    """

    concurrency = False

    def __init__(
        self,
        make: Callable[[str, Mapping[str, int], bool], Session],
        value: Callable[[tuple[int, ...], str], Any],
    ) -> None:
        self._make, self._value = make, value
        self._lock = threading.Lock()
        self.sessions: dict[Key, _Bound] = {}

    def run(
        self, operation: str, graph: GraphSpec, feed: Arrays, shape: Mapping[str, int], exact: bool
    ) -> list[NDArray[Any]]:
        """As `Lane.run`."""
        key = operation, shape_key(shape), exact
        with self._lock:
            bound = self.sessions.get(key)
            if bound is None:
                session = self._make(operation, shape, exact)
                bound = self.sessions[key] = _Bound(session, graph, shape, self._value)
            return bound.run(feed)

    def keep(self, wanted: Collection[tuple[str, Shape]]) -> None:
        """Forget all sessions but those of these operations and shapes, as they are served."""
        with self._lock:
            for key in [k for k in self.sessions if k[:2] not in set(wanted) or k[2]]:
                del self.sessions[key]

    def clear(self) -> None:
        """As `Lane.clear`."""
        with self._lock:
            self.sessions.clear()


class _Bound:
    """A session whose inputs and outputs stay where they are.

    A CUDA graph replays on the addresses that it was captured with; and without one, nothing is
    allocated on the device for a batch.
    """

    def __init__(
        self,
        session: Session,
        graph: GraphSpec,
        shape: Mapping[str, int],
        value: Callable[[tuple[int, ...], str], Any],
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        sizes = {
            t: tuple(_size(d, shape) for d in t.shape) for t in (*graph.inputs, *graph.outputs)
        }
        self._inputs = {t.name: value(sizes[t], t.dtype) for t in graph.inputs}
        self._outputs = {t.name: value(sizes[t], t.dtype) for t in graph.outputs}
        for name, placed in self._inputs.items():
            self._binding.bind_ortvalue_input(name, placed)
        for name, placed in self._outputs.items():
            self._binding.bind_ortvalue_output(name, placed)

    def run(self, feed: Arrays) -> list[NDArray[Any]]:
        """Copy in, compute, copy out."""
        for name, placed in self._inputs.items():
            placed.update_inplace(np.ascontiguousarray(feed[name]))
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [_own(placed.numpy()) for placed in self._outputs.values()]


def _own(array: NDArray[Any]) -> NDArray[Any]:
    """On a CPU it may be a view of what the next batch overwrites."""
    return array if array.flags.owndata else array.copy()


def _size(dimension: int | str, shape: Mapping[str, int]) -> int:
    return shape[dimension] if isinstance(dimension, str) else dimension
