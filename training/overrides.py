"""Fields of a run's configuration by their paths: `model.levels=[3,3]`, as `fit --set` takes them.

What has no option of its own is set so, and a recorded command names it so: every configuration
can be told in one line.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from model.config import ConfigError
from training.config import RunConfig, run_config_from_dict

__all__ = ["PARTS", "differences", "with_settings"]

PARTS = ("model", "data", "optim", "train")


def with_settings(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """`config` with each PATH=VALUE set; a value is JSON, or else the text itself.

    Raises `ConfigError` where a path leads nowhere, or what comes out is no configuration.
    """
    if not settings:
        return config
    values = copy.deepcopy(config.to_dict())
    for setting in settings:
        path, equals, text = setting.partition("=")
        names = path.strip().split(".")
        if not equals or names[0] not in PARTS:
            raise ConfigError(
                f"--set takes PATH=VALUE with a path in {', '.join(PARTS)}, such as "
                f"model.levels=[3,3], not {setting!r}"
            )
        _put(values, names, _value(text), path)
    return run_config_from_dict(values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(values: dict[str, Any], names: Sequence[str], value: Any, path: str) -> None:
    inner: Any = values
    for name in names[:-1]:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or names[-1] not in inner:
        known = f"; there are {', '.join(sorted(inner))}" if isinstance(inner, dict) else ""
        raise ConfigError(f"--set {path}: a run has no such field{known}")
    before = inner[names[-1]]
    if isinstance(value, str) and not isinstance(before, str | None):
        raise ConfigError(f"--set {path} takes JSON such as {json.dumps(before)}, not {value!r}")
    inner[names[-1]] = value


def differences(base: RunConfig, config: RunConfig, without: Collection[str]) -> list[str]:
    """PATH=VALUE for each field of `config` that `base` has not, but for the paths `without`."""
    before, after = (json.loads(json.dumps(each.to_dict())) for each in (base, config))
    return [
        f"{path}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for part in PARTS
        for path, value in _changed(part, before[part], after[part])
        if path not in without
    ]


def _changed(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any]]:
    """The smallest parts that differ; objects of two kinds are told whole."""
    alike = isinstance(before, Mapping) and isinstance(after, Mapping)
    if alike and before.keys() == after.keys() and before.get("kind") == after.get("kind"):
        for name in after:
            yield from _changed(f"{path}.{name}", before[name], after[name])
    elif before != after:
        yield path, after
