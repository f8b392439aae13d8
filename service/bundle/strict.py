"""JSON values to frozen dataclasses: every unknown, missing or mistyped field is refused by name.

A manifest is written on one machine and trusted on another, so nothing is coerced and nothing is
ignored: a misspelt field is an error, not a default. Fields that have a default may be absent.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin

__all__ = ["from_json", "to_json"]

T = TypeVar("T")


def from_json(kind: type[T], value: object, where: str) -> T:
    """`value` as an instance of the dataclass `kind`.

    `where` is the dotted path of `value` in its file, for messages. Understands nested dataclasses,
    ``tuple[X, ...]`` (from lists), ``dict[str, X]``, ``X | None``, ``Literal``, bool, int, float,
    str and ``object`` (any JSON). Raises ValueError naming the field.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {_name(value)}")
    hints = _hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{where} has unknown field(s) {', '.join(unknown)}")
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}  # type: ignore[arg-type]
    if missing := sorted(needed - set(value)):
        raise ValueError(f"{where} lacks field(s) {', '.join(missing)}")
    fields = {name: _convert(hints[name], value[name], f"{where}.{name}") for name in value}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def to_json(value: object) -> Any:
    """The reverse of `from_json`: dataclasses to dicts, tuples to lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _hints(kind: type) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in names}


def _convert(hint: Any, value: object, where: str) -> Any:
    if hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    origin = get_origin(hint)
    if origin is Literal:
        return _literal(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _union(hint, value, where)
    if origin is tuple:
        return _tuple(hint, value, where)
    if origin is dict:
        return _dict(hint, value, where)
    return _scalar(hint, value, where)


def _literal(hint: Any, value: object, where: str) -> object:
    if value not in get_args(hint) or isinstance(value, bool):
        raise ValueError(f"{where} must be one of {list(get_args(hint))}, not {value!r}")
    return value


def _union(hint: Any, value: object, where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value, where)
            except ValueError as error:
                errors.append(str(error))
    raise ValueError(" or ".join(errors))


def _tuple(hint: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, not {_name(value)}")
    item = get_args(hint)[0]
    return tuple(_convert(item, element, f"{where}[{i}]") for i, element in enumerate(value))


def _dict(hint: Any, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {_name(value)}")
    item = get_args(hint)[1]
    return {key: _convert(item, element, f"{where}.{key}") for key, element in value.items()}


def _scalar(hint: Any, value: object, where: str) -> object:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, not {_name(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, not {value}")
    return value


def _name(value: object) -> str:
    return "null" if value is None else type(value).__name__
