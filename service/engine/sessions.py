"""How sessions are used: on a CPU one an operation, shared by all threads; on a GPU one for each
shape, with its inputs and outputs at fixed places of the device's memory.

No library is imported here: who uses them says how a session and a tensor are made, so that the
ways of a GPU can be gone, and tested, on a CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle.graphs import GraphSpec
from service.engine.arrays import Arrays

__all__ = ["BoundSessions", "Session", "Sessions", "SharedSessions", "shape_key"]

Shape = tuple[int, ...]  # sizes of a graph's dynamic dimensions, in the order N, R
Key = tuple[str, Shape]


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


class Sessions(Protocol):
    """Sessions, and how they are run."""

    concurrency: bool

    def run(
        self, operation: str, graph: GraphSpec, feed: Arrays, shape: Mapping[str, int]
    ) -> list[NDArray[Any]]:
        """Outputs in the graph's order."""
        ...

    def clear(self) -> None:
        """Forget all sessions."""
        ...


def shape_key(shape: Mapping[str, int]) -> Shape:
    """A session's key: the sizes alone."""
    return tuple(shape[name] for name in sorted(shape))


class SharedSessions:
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
    ) -> list[NDArray[Any]]:
        """Outputs in the graph's order; any number at once."""
        session = self.sessions.get(operation)
        if session is None:
            with self._lock:
                session = self.sessions.get(operation) or self._make(operation)
                self.sessions[operation] = session
        return session.run([tensor.name for tensor in graph.outputs], feed)

    def clear(self) -> None:
        """Forget all sessions."""
        self.sessions.clear()


class BoundSessions:
    """A session for each operation and shape, one run at a time.

    make: a session of an operation; value: an uninitialised tensor of (shape, dtype)
    in the device's memory, as ``onnxruntime.OrtValue``.
    """

    concurrency = False

    def __init__(
        self,
        make: Callable[[str], Session],
        value: Callable[[tuple[int, ...], str], Any],
    ) -> None:
        self._make, self._value = make, value
        self._lock = threading.Lock()
        self.sessions: dict[Key, _Bound] = {}

    def run(
        self, operation: str, graph: GraphSpec, feed: Arrays, shape: Mapping[str, int]
    ) -> list[NDArray[Any]]:
        """Outputs in the graph's order; others wait."""
        key = operation, shape_key(shape)
        with self._lock:
            bound = self.sessions.get(key)
            if bound is None:
                session = self._make(operation)
                bound = self.sessions[key] = _Bound(session, graph, shape, self._value)
            return bound.run(feed)

    def keep(self, wanted: Collection[Key]) -> None:
        """Forget all sessions but those of these operations and shapes."""
        with self._lock:
            for key in self.sessions.keys() - set(wanted):
                del self.sessions[key]

    def clear(self) -> None:
        """Forget all sessions."""
        with self._lock:
            self.sessions.clear()


class _Bound:
    """A session whose inputs and outputs stay where they are: nothing is allocated for a batch."""

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
