"""What configurations share: the error that names a bad value, and the checks that raise it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

C = TypeVar("C")


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
    try:
        return cls(**values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{what} has a value of the wrong type ({error}): {values}") from error


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON values, each part with its `kind`."""
    values = {"kind": config.kind, **{f.name: getattr(config, f.name) for f in fields(config)}}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    return list(value) if isinstance(value, tuple) else value
