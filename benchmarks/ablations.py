"""Which choice gives how many nats: every row trained for the same minutes, from the same seeds.

    python benchmarks/ablations.py --out DIR --budget-minutes 10 [--rows base diagonal ...]

Each row changes one choice of the preset (default: `mnist`), trains for --budget-minutes, counted
from its first step, and is measured on the validation images: the ELBO of the averaged weights in
nats, higher is better. The learning rate stays constant after a short warm-up, so that the length
of a run, which equal minutes leave open, changes nothing else. --list shows the rows.

DIR/results.json is rewritten after every row: interrupted, the same command goes on with the row
that it was at. DIR/ablations.md is the table; every row of it names the command that makes it
alone. A row that is not compiled in the same way, or shares the machine with other work, gets
fewer steps: the table has them beside the nats.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

if not __package__:  # run as a file: this folder's names would hide the packages'
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.ablation_rows import ROWS, Row, rows_for
from benchmarks.harness import (
    machine,
    machine_line,
    read_json,
    table,
    write_json,
    write_whole,
)
from training.config import ConfigError, RunConfig, Runtime, run_preset
from training.errors import DataError, TrainingError
from training.fit.device import prepare
from training.fit.fit import fit

# Longer than any budget: a run ends by its minutes.
EPOCHS = 100_000
Result = dict[str, Any]


def base_config(options: argparse.Namespace) -> RunConfig:
    """What all rows start from."""
    config = run_preset(options.preset)
    optim = replace(config.optim, schedule="constant", warmup_steps=options.warmup_steps)
    warmup = config.train.kl_warmup_epochs and options.kl_warmup_epochs
    train = replace(config.train, epochs=EPOCHS, kl_warmup_epochs=warmup)
    return replace(config, optim=optim, train=train)


def command(row: Row, seed: int, options: argparse.Namespace) -> str:
    """What makes this row alone."""
    words = ["python benchmarks/ablations.py", f"--preset {options.preset}", f"--rows {row.name}"]
    words += [f"--seeds {seed}", f"--budget-minutes {options.budget_minutes:g}"]
    words += [f"--compile {options.compile}", f"--warmup-steps {options.warmup_steps}"]
    words += [f"--kl-warmup-epochs {options.kl_warmup_epochs:g}", "--out DIR"]
    return " ".join(words)


def train_row(row: Row, config: RunConfig, options: argparse.Namespace) -> Result:
    """Train one row from one seed; raises `KeyboardInterrupt` where it was interrupted."""
    run_dir = options.out / "runs" / f"{row.name}-{config.train.seed}"
    if run_dir.exists():  # an interrupted row's: its minutes are not known, so it starts anew
        shutil.rmtree(run_dir)
    runtime = Runtime(device=options.device, compile=options.compile, threads=options.threads)
    with row.applied():
        result = fit(
            config,
            run_dir,
            runtime=runtime,
            data_dir=options.data_dir,
            resume=False,
            budget_minutes=options.budget_minutes,
            optimizer_state=False,
            console=Console(stderr=True),
        )
    if not options.keep_runs:
        shutil.rmtree(run_dir)
    if result.reason != "budget":
        raise KeyboardInterrupt(result.reason)
    return {"elbo_nats": result.elbo_nats, "steps": result.step, "skipped": result.skipped}


def described(row: Row, config: RunConfig, options: argparse.Namespace) -> Result:
    """What tells one result from another."""
    return {
        "preset": options.preset,
        "row": row.name,
        "what": row.what,
        "seed": config.train.seed,
        "budget_minutes": options.budget_minutes,
        "compile": options.compile,
        "config": config.to_dict(),
        "command": command(row, config.train.seed, options),
    }


def run(rows: list[Row], base: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """The document, with what is missing trained; seeds outside, so that rows come in turn."""
    path = options.out / "results.json"
    kept = (read_json(path) or {}).get("results", {})
    device = prepare(Runtime(device=options.device, threads=options.threads)).device
    document = {**machine(device), "results": kept}
    for seed in options.seeds:
        for row in rows:
            config = row.configure(replace(base, train=replace(base.train, seed=seed)))
            told = described(row, config, options)
            found = kept.get(f"{row.name}/{seed}", {})
            if any(found.get(name) != value for name, value in told.items()):
                print(f"$ {told['command']}", flush=True)
                found = {**told, **train_row(row, config, options)}
                kept[f"{row.name}/{seed}"] = found
                write_json(path, document)
            print(f"{row.name:16} seed {seed}: {found['elbo_nats']:9.3f} nats", flush=True)
    return document


def markdown(results: list[Result]) -> str:
    """The table, best first, with the difference to the base and the spread over seeds."""
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result["row"], []).append(result)
    means = {name: statistics.mean(r["elbo_nats"] for r in own) for name, own in by_row.items()}
    lines = []
    for name in sorted(by_row, key=lambda name: -means[name]):
        own = by_row[name]
        values = [r["elbo_nats"] for r in own]
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        against = f"{means[name] - means['base']:+.2f}" if "base" in means else ""
        steps = f"{statistics.mean(r['steps'] for r in own):,.0f}"
        words = [name, own[0]["what"], f"{means[name]:.2f}", against, spread]
        lines.append([*words, str(len(own)), steps])
    head = ["row", "", "ELBO, nats", "against base", "deviation", "seeds", "steps"]
    commands = "\n".join(f"    {own[0]['command']}" for own in by_row.values())
    return f"{table(head, lines, left=2)}\n\nEach row alone:\n\n{commands}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--budget-minutes", type=float, default=10.0, help="a row (default 10)")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument("--data-dir", type=Path, help="where the data set is")
    parser.add_argument("--warmup-steps", type=int, default=100, help="of the learning rate")
    parser.add_argument(
        "--kl-warmup-epochs", type=float, default=1.0, help="where the preset has a warm-up"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="default on")
    parser.add_argument("--keep-runs", action="store_true", help="keep each row's run directory")
    parser.add_argument("--list", action="store_true", help="show the rows and end")
    options = parser.parse_args()
    if options.out is None and not options.list:
        parser.error("the following arguments are required: --out")
    return options


def main() -> None:
    """Train what is missing and write the table."""
    options = arguments()
    try:
        base = base_config(options)
        rows = [r for r in rows_for(base) if options.rows is None or r.name in options.rows]
        if options.list:
            print("\n".join(f"{row.name:16} {row.what}" for row in rows))
            return
        document = run(rows, base, options)
    except (ConfigError, TrainingError, DataError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on with the row it was at") from None
    same = {"preset": options.preset, "budget_minutes": options.budget_minutes}
    results = document["results"].values()  # a directory may hold other budgets' too
    text = markdown([r for r in results if all(r[name] == v for name, v in same.items())])
    budget = f"{options.preset}, {options.budget_minutes:g} minutes a row, {machine_line(document)}"
    write_whole(options.out / "ablations.md", f"{budget}\n\n{text}\n")
    print(f"\n{text}\n\n{budget}")


if __name__ == "__main__":
    main()
