"""The image as its Dockerfile states it: what goes in, what stays out, how it runs."""

from __future__ import annotations

import http.server
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TARGETS = ("cpu", "cuda")
EVERYWHERE = "0.0.0.0"  # noqa: S104 - of a container
TRAINING = {"model", "training", "torch", "onnx", "onnxscript", "safetensors", "matplotlib"}


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it: (instruction, rest) pairs, continued lines joined."""

    name: str
    base: str
    steps: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.steps if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def read_stages(text: str) -> dict[str, Stage]:
    """Stages by name, in order; arguments before the first FROM are left out."""
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", "", bare).splitlines()
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, lines)):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base, ())
        elif stages:
            last = stages.popitem()[1]
            stages[last.name] = Stage(last.name, last.base, (*last.steps, (word, rest)))
    return stages


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def lineage(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages whose layers end up in the image of `target`, from the base up."""
    found, name = [], target
    while name in stages:
        found.insert(0, stages[name])
        name = stages[name].base
    return found


def steps(stages: dict[str, Stage], target: str, instruction: str) -> list[str]:
    return [rest for stage in lineage(stages, target) for rest in stage.all(instruction)]


def environment(stages: dict[str, Stage], target: str) -> dict[str, str]:
    pairs = re.findall(r'(\w+)=("[^"]*"|\S+)', " ".join(steps(stages, target, "ENV")))
    return {name: value.strip('"') for name, value in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_cuda_is_what_a_build_without_a_target_makes(stages):
    assert list(stages)[-1] == "cuda"
    assert stages["cpu"].base == stages["cuda"].base == "runtime"


CHECKS = {"cpu": [], "cuda": ["--chmod=0644 deploy/gpu_check.py /opt/iafvae/gpu_check.py"]}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_takes_only_its_environment_its_service_and_the_checks(stages, target):
    assert steps(stages, target, "COPY") == [
        "--chmod=0644 deploy/healthcheck.py /opt/iafvae/healthcheck.py",
        f"--from=dependencies-{target} /opt/iafvae /opt/iafvae",
        f"--from=service /staged/{target} /",
        *CHECKS[target],
    ]
    assert not steps(stages, target, "ADD")
    assert not any("pip" in run.split() or "apt-get" in run for run in steps(stages, target, "RUN"))


def test_every_install_is_at_hashes_and_dependencies_come_before_the_source(stages):
    installs = [
        (stage.name, part)
        for stage in stages.values()
        for run in stage.all("RUN")
        for part in run.split("&&")
        if re.search(r"\bpip\b.*\binstall\b", part)
    ]
    assert {name for name, _ in installs} >= {"tools", "dependencies-cpu", "dependencies-cuda"}
    for name, part in installs:
        assert "--require-hashes" in part or "--no-deps" in part, (name, part)
    for target in TARGETS:
        layers = lineage(stages, f"dependencies-{target}")
        copied = " ".join(copy for stage in layers for copy in stage.all("COPY"))
        assert "service " not in copied, "a change of the code would install everything again"
        assert "pyproject.toml" not in copied, "a change of its tools' options would, too"


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_fixed_number_and_gets_signals_itself(stages, target):
    user = stages[target].last("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert stages[target].steps[-1] == ("USER", user), "nothing may follow as another user"
    uid, gid = user.split(":")
    created = " ".join(steps(stages, target, "RUN"))
    assert f"useradd --uid {uid} --gid {gid}" in created
    assert json.loads(stages["runtime"].last("ENTRYPOINT")) == ["/opt/iafvae/bin/iafvae"]
    assert json.loads(stages["runtime"].last("CMD")) == ["serve"]


@pytest.mark.parametrize("target", TARGETS)
def test_its_environment(stages, target, monkeypatch):
    got = environment(stages, target)
    assert got["IAFVAE_HOST"] == EVERYWHERE
    assert got["IAFVAE_PORT"] == steps(stages, target, "EXPOSE")[0]
    assert got["PYTHONUNBUFFERED"] == got["PYTHONDONTWRITEBYTECODE"] == "1"
    assert got["ORT_DISABLE_TELEMETRY"] == "1"
    assert ("NVIDIA_VISIBLE_DEVICES" in got) == (target == "cuda")
    from service.settings import load_settings

    for name in [name for name in os.environ if name.startswith("IAFVAE_")]:
        monkeypatch.delenv(name)
    for name, value in got.items():
        if name.startswith("IAFVAE_"):
            monkeypatch.setenv(name, value)
    settings = load_settings()  # a name that the service does not know is an error
    assert settings.provider == ("cpu" if target == "cpu" else "auto")


def test_the_healthcheck_runs_the_script_without_a_shell(stages):
    text = stages["runtime"].last("HEALTHCHECK")
    command = json.loads(text[text.index("CMD ") + 4 :])
    assert command[0] == "/opt/iafvae/bin/python"
    assert f"--chmod=0644 deploy/healthcheck.py {command[-1]}" in stages["runtime"].all("COPY")


def test_the_label_states_the_version_of_the_project(stages):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in stages["runtime"].last("LABEL")


def test_the_build_is_given_no_training_code_and_all_that_it_copies():
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert not [name for name in allowed if name.split("/")[0] in TRAINING | {"tests", ".git"}]
    stages = read_stages((ROOT / "Dockerfile").read_text())
    for stage in stages.values():
        for copy in stage.all("COPY"):
            if not copy.startswith("--from="):
                for source in (w for w in copy.split()[:-1] if not w.startswith("--")):
                    assert (ROOT / source).exists(), source
                    assert any(fnmatch(source, rule) for rule in allowed), source


def derive(target: str, folder: Path) -> tuple[dict, list[str]]:
    command = [sys.executable, DEPLOY / "service_project.py", ROOT / "pyproject.toml", target]
    subprocess.run([*command, folder], check=True)
    document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return document, (folder / "requirements.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("target", "engine"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu[cuda,cudnn]")]
)
def test_the_derived_project_is_the_service_alone_with_one_engine(tmp_path, target, engine):
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    document, requirements = derive(target, tmp_path)
    project = document["project"]
    assert project["dependencies"] == requirements
    assert [r.split(">")[0] for r in requirements if r.startswith("onnxruntime")] == [engine]
    others = {r for r in whole["dependencies"] if not r.startswith("onnxruntime")}
    for extra in ("otel", "remote"):
        others |= set(whole["optional-dependencies"][extra])
    assert others < set(requirements)
    assert len(requirements) == len(others) + 1
    assert project["version"] == whole["version"]
    assert project["scripts"] == {"iafvae": whole["scripts"]["iafvae"]}
    packages = document["tool"]["setuptools"]["packages"]["find"]["include"]
    assert packages == ["service*"]
    assert "bundles/**/*" in document["tool"]["setuptools"]["package-data"]["service"]


def pins(file: Path) -> dict[str, str]:
    """Versions by name."""
    return {
        normal(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", file.read_text(), re.MULTILINE)
    }


def test_the_images_lock_what_everything_else_installs(tmp_path):
    """`make locks` mends it."""
    everywhere = pins(ROOT / "constraints.txt")
    assert pins(DEPLOY / "locks" / "tools.txt").keys() == {"setuptools"}
    for target in TARGETS:
        file = DEPLOY / "locks" / f"{target}.txt"
        locked = pins(file)
        assert locked.items() <= everywhere.items()
        _, requirements = derive(target, tmp_path / target)
        assert {normal(re.split(r"[\[<>=; ]", line)[0]) for line in requirements} <= set(locked)
        assert not TRAINING & set(locked)
        entries = re.split(r"^(?=[a-z])", file.read_text(), flags=re.MULTILINE)[1:]
        assert len(entries) == len(locked)
        assert all("--hash=sha256:" in entry for entry in entries)


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on a free port whose /readyz says `status`; any other path is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b'{"status": "of a test"}')

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check_health(port: str, host: str = EVERYWHERE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-IS", DEPLOY / "healthcheck.py"]
    variables = {**os.environ, "IAFVAE_PORT": port, "IAFVAE_HOST": host}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_the_healthcheck_follows_readyz(status, code):
    with answering(status) as port:
        ran = check_health(str(port))
    assert ran.returncode == code
    assert (str(status) in ran.stderr) == (code == 1)


def test_the_healthcheck_beside_a_kubernetes_service_named_iafvae():
    """Which sets IAFVAE_PORT; the service keeps its own port then, as `load_settings` does."""
    healthcheck = runpy.run_path(str(DEPLOY / "healthcheck.py"))
    assert healthcheck["own_port"]("tcp://10.0.0.1:8000") == "8000"
    assert healthcheck["own_port"]("") == "8000"
    assert healthcheck["own_port"]("9000") == "9000"
    assert "Traceback" not in check_health("tcp://10.0.0.1:8000").stderr


def test_the_healthcheck_fails_where_nothing_listens_or_the_port_is_no_number():
    with answering(200) as port:
        pass
    for wrong in (str(port), "http"):
        ran = check_health(wrong)
        assert ran.returncode == 1
        assert "no answer" in ran.stderr
        assert "Traceback" not in ran.stderr
