"""What configurations share: the error that names a bad value, and the checks that raise it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

C = TypeVar("C")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class ConfigError(ValueError):
    """A configuration that names something unknown or contradicts itself."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is among `choices`."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, not {value!r}")


def require_counts(name: str, values: tuple[int, ...], *, least: int = 1) -> None:
    """Raise `ConfigError` unless all of `values` are at least `least`."""
    require(
        all(value >= least for value in values),
        f"{name} must hold numbers of at least {least}, not {values}",
    )


def construct(cls: type[C], values: Mapping[str, Any], what: str) -> C:
    """Call a configuration's class; a value of the wrong type is a `ConfigError` naming `what`."""
    hints = get_type_hints(cls)
    for name, hint in hints.items():
        if name in values and not _fits(values[name], hint):
            raise ConfigError(
                f"{what} has a value of the wrong type: {what}.{name} must be {_words(hint)}, not "
                f"{values[name]!r}"
            )
    whole = {n for n, hint in hints.items() if hint is float and isinstance(values.get(n), int)}
    try:
        return cls(**{**values, **{name: float(values[name]) for name in whole}})
    except (TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{what} has a value of the wrong type ({error}): {values}") from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of the type; choices and parts are checked elsewhere."""
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if ... in parts else parts
        return len(each) == len(value) and all(map(_fits, value, each))
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if parts:
        return any(_fits(value, part) for part in parts)
    if hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (hint is float and isinstance(value, float))
    return isinstance(value, hint) if hint in (*WORDS, NoneType) else True


def _words(hint: Any) -> str:
    """A type for people."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is tuple:
        count = "" if ... in parts else f"{len(parts)} "
        return f"a list of {count}{'whole ' if parts[0] is int else ''}numbers"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(parts)}"
    return " or ".join(map(_words, parts)) if parts else WORDS.get(hint, "an object")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON values, each part with its `kind`."""
    values = {"kind": config.kind, **{f.name: getattr(config, f.name) for f in fields(config)}}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    return list(value) if isinstance(value, tuple) else value
