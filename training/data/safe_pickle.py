"""Reads the pickled batches of CIFAR-10 without running what a pickle may ask for.

A pickle is a program: the usual reader imports and calls whatever it names. Here the few names
that these files hold stand for objects of our own, which do nothing but take an array's bytes;
any other name is refused, and no NumPy constructor is reached.
"""

import io
import math
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

__all__ = ["load_batch"]

# An official batch has 31 MB; one written by Python 3 as protocol 2 has 44 MB (bytes as text).
MAX_BYTES = 64 * 2**20
UINT8_NAMES = ("u1", b"u1", "|u1", b"|u1")
FAULTS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Inert:
    """Has no state that a pickle could set."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of what has none")


class _Encode(_Inert):
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: object = "latin1") -> bytes:
        if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
            raise pickle.UnpicklingError("it encodes something else than bytes")
        return text.encode("latin1")


class _NoBytes(_Inert):
    """`bytes()`: how protocol 2 writes none."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _Word(_Inert):
    """A name that is only ever handed on: `numpy.ndarray`."""

    __slots__ = ()


class _Dtype:
    """`numpy.dtype("u1", ...)`: takes note of its name; its state says nothing more."""

    __slots__ = ("name",)

    def __init__(self, name: object) -> None:
        self.name = name

    def __setstate__(self, _state: object) -> None:
        return


class _MakeDtype(_Inert):
    __slots__ = ()

    def __call__(self, name: object, *_flags: object) -> _Dtype:
        return _Dtype(name)


class _Array:
    """What `_reconstruct` begins and `__setstate__` fills: uint8 pixels, nothing else."""

    __slots__ = ("pixels",)

    def __init__(self) -> None:
        self.pixels: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.name not in UINT8_NAMES:
            raise pickle.UnpicklingError("its array is not of uint8")
        if not isinstance(raw, bytes) or fortran or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError("its array's bytes do not fill its shape")
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape)


class _MakeArray(_Inert):
    __slots__ = ()

    def __call__(self, *_arguments: object) -> _Array:
        return _Array()


ALLOWED: dict[tuple[str, str], _Inert] = {
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _NoBytes(),
    ("builtins", "bytes"): _NoBytes(),
    ("numpy", "ndarray"): _Word(),
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
}


class _Unpickler(pickle.Unpickler):  # the base's own rules are all replaced: find_class is the gate
    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of one of the few names that a batch holds."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return ALLOWED[module, name]


def load_batch(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array under `data` of a pickled batch; `name` is the file's, for messages.

    Raises `DataError` for whatever is no such batch; nothing that it holds is run.
    """
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} has {len(content)} bytes: too many for a batch of CIFAR-10.")
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except FAULTS as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name} was not read, for it is no batch of CIFAR-10: {reason}") from error
    values = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    data = values.get("data")
    if not isinstance(data, _Array) or data.pixels is None:
        raise DataError(f"{name} is no batch of CIFAR-10: it has no array called 'data'.")
    return data.pixels


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key
