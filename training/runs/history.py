"""The calls that made a run: a run is started once, and gone on with at will, maybe otherwise.

`config.json` says under `environment.calls` from which step on which command, program and machine
trained it: a call is listed where anything differs from the one before. `environment.command` is
the whole in one line.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.runs.directory import CONFIG_FILE
from training.runs.provenance import resume_command
from training.schedules import learning_rate_at

__all__ = ["one_line", "rate_note", "read_environment", "until_step", "with_call", "with_command"]

Environment = Mapping[str, Any]
FIT = "iafvae-train fit "
PLAIN = f"{FIT}--resume --out RUN"


def read_environment(run_dir: Path) -> dict[str, Any]:
    """What `config.json` says of the calls so far; nothing where it is missing or spoilt."""
    try:
        found = json.loads((run_dir / CONFIG_FILE).read_bytes()).get("environment", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def with_call(
    previous: Environment,
    before: RunConfig | None,
    config: RunConfig,
    environment: Environment,
    step: int,
) -> dict[str, Any]:
    """`environment` of a call that trains `config` from `step` on, with the list of all calls.

    `previous` and `before` are what the run's directory says of the calls so far (before this
    one). Calls from a later step, which was lost, count from this one: their settings stayed.
    """
    fresh = {"step": 0, **environment}
    if step == 0 or before is None or not previous:
        return {**environment, "calls": [fresh]}
    calls = [{**call, "step": min(call["step"], step)} for call in _calls(previous)]
    known: dict[str, Any] = {}
    for call in calls:
        known |= call
    changed = {
        name: value
        for name, value in environment.items()
        if name != "command" and known.get(name) != value
    }
    command = resume_command(before, config)
    if changed or command != resume_command(config, config):
        calls.append({"step": step, "command": command, **changed})
    return {**environment, "command": one_line(calls), "calls": calls}


def with_command(previous: Environment, step: int, command: str) -> dict[str, Any]:
    """`environment` after a command that changed the run's weights at `step` otherwise."""
    calls = [*_calls(previous), {"step": step, "command": command}]
    return {**previous, "command": one_line(calls), "calls": calls}


def until_step(environment: Environment, step: int) -> dict[str, Any]:
    """`environment` as it was when the weights of `step` were made: a call of `fit` that began
    there has not changed them yet."""
    first, *later = _calls(environment)
    calls, known = [first], dict(first)
    for call in later:
        began = call["step"] == step and FIT in call.get("command", PLAIN)
        if call["step"] <= step and not began:
            calls.append(call)
            known |= call
    if len(calls) > len(later):
        return dict(environment)
    del known["step"]
    return {**known, "command": one_line(calls), "calls": calls}


def _calls(previous: Environment) -> list[dict[str, Any]]:
    """The list; of a run from before there was one, its environment as the first call."""
    listed = previous.get("calls")
    if isinstance(listed, list) and listed:
        return [dict(call) for call in listed]
    return [{"step": 0, **{k: v for k, v in previous.items() if k != "calls"}}]


def one_line(calls: Sequence[Mapping[str, Any]]) -> str:
    """The commands of all calls whose settings were new, one after another."""
    words = [str(calls[0].get("command", "iafvae-train fit --out RUN"))]
    words += [
        f"from step {call['step']}: {call['command']}"
        for call in calls[1:]
        if call.get("command", PLAIN) != PLAIN
    ]
    return "; ".join(words)


def rate_note(before: RunConfig, config: RunConfig, step: int, steps_per_epoch: int) -> str:
    """A word where other settings make the learning rate jump at a resume; "" where none does."""
    then, now = (
        learning_rate_at(one.optim, step, one.train.epochs * steps_per_epoch)
        for one in (before, config)
    )
    if abs(now - then) <= 0.01 * max(now, then):
        return ""
    return f"note: with these settings the learning rate goes on at {now:.3g}, not {then:.3g}"
