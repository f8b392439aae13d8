"""Write the project that an image installs: the service alone, with the engine of one target.

    python3 service_project.py pyproject.toml cpu DESTINATION

The repository's own pyproject.toml names the training packages too, and one engine,
onnxruntime-gpu, for every Linux machine: it runs without a GPU, but is twice the size of
onnxruntime. From it this derives, for `cpu`, the same dependencies with plain onnxruntime, and for
`cuda`, with the extra of that name, which adds CUDA's libraries; both with the extras otel and
remote. DESTINATION gets

    pyproject.toml    to build the wheel from; its metadata say what is really installed
    requirements.txt  the dependencies alone, of which `make locks` makes the lock of the target
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ENGINES = ("onnxruntime", "onnxruntime-gpu")
EXTRAS = ("otel", "remote")  # traces, and bundles pulled by an init container
KEPT = ("name", "version", "description", "requires-python", "license", "license-files")


def requirement_name(requirement: str) -> str:
    """The name at the front of "name[extra]>=1; marker", lower case."""
    found = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
    if found is None:
        raise SystemExit(f"{requirement!r} is no requirement: mend pyproject.toml")
    return found[1].lower()


def engine(project: dict[str, Any], target: str) -> list[str]:
    """What `target` installs in place of the engines that `project` chooses by platform."""
    if target == "cuda":
        return list(project["optional-dependencies"]["cuda"])
    plain = [r for r in project["dependencies"] if requirement_name(r) == "onnxruntime"]
    return [requirement.split(";")[0].strip() for requirement in plain]


def dependencies(project: dict[str, Any], target: str) -> list[str]:
    """The service's dependencies with the engine of `target`, "cpu" or "cuda"."""
    if target not in {"cpu", "cuda"}:
        raise SystemExit(f"there is no target {target!r}: take cpu or cuda")
    chosen = engine(project, target)
    if len(chosen) != 1 or requirement_name(chosen[0]) not in ENGINES:
        raise SystemExit(f"pyproject.toml states no one engine for {target}, but {chosen}")
    others = [r for r in project["dependencies"] if requirement_name(r) not in ENGINES]
    extras = [r for extra in EXTRAS for r in project["optional-dependencies"][extra]]
    return sorted([*others, *extras, *chosen])


def service_project(document: dict[str, Any], target: str) -> str:
    """The text of the derived pyproject.toml. JSON strings and lists are TOML too."""
    project, tool = document["project"], document["tool"]["setuptools"]
    tables: dict[str, dict[str, Any]] = {
        "build-system": document["build-system"],
        "project": {name: project[name] for name in KEPT}
        | {"dependencies": dependencies(project, target)},
        "project.scripts": {"iafvae": project["scripts"]["iafvae"]},
        "tool.setuptools.packages.find": {"include": ["service*"], "namespaces": False},
        "tool.setuptools.package-data": {"service": tool["package-data"]["service"]},
    }
    lines: list[str] = []
    for table, values in tables.items():
        fields = [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in values.items()]
        lines += [f"[{table}]", *fields, ""]
    return "\n".join(lines)


def main(source: str, target: str, destination: str) -> None:
    """Write both files."""
    document = tomllib.loads(Path(source).read_text(encoding="utf-8"))
    folder = Path(destination)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(service_project(document, target), encoding="utf-8")
    wanted = dependencies(document["project"], target)
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
