"""The workflow of GitHub does what `.ci/run` does, on what the project says it supports."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_it_runs_the_same_program_on_every_python_that_is_supported(jobs):
    assert [c.rpartition(" ")[2] for c in commands(jobs["check"])] == [".ci/run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (\d\.\d+)", "\n".join(project["classifiers"]))
    assert jobs["check"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_tests_that_ray_is_needed_for_are_run_with_it(jobs):
    """`make test` installs none, and leaves them out."""
    install, run = commands(jobs["ray"])
    assert "ray" in re.findall(r"\.\[([\w,]+)\]", install)[0].split(",")
    tests = (ROOT / "tests" / "service").rglob("test_*.py")
    needy = [file for file in tests if 'importorskip("ray")' in file.read_text()]
    assert needy
    assert run.split()[4:] == [str(file.relative_to(ROOT)) for file in needy]


def test_both_have_the_targets_and_files_that_they_name(jobs):
    makefile = (ROOT / "Makefile").read_text()
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]
    said = "\n".join([*lines, *(c for job in jobs.values() for c in commands(job))])
    for target in re.findall(r"^make ([a-z-]+)", said, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for file in re.findall(r"(?:deploy|\.ci)/[\w./-]+", said):
        assert (ROOT / file).exists(), file


def test_the_images_built_and_released_are_those_of_the_dockerfile(jobs):
    dockerfile = (ROOT / "Dockerfile").read_text()
    targets = re.findall(r"^FROM runtime AS (\w+)", dockerfile, re.MULTILINE)
    assert jobs["image"]["strategy"]["matrix"]["target"] == targets
    released = [
        s["with"]["target"] for s in jobs["release"]["steps"] if "target" in s.get("with", {})
    ]
    assert released == targets
    assert jobs["release"]["needs"] == ["check", "ray", "image"]


def test_a_release_starts_where_program_and_chart_agree(jobs):
    """The checks of a tag, as the workflow has them, for the version that is here."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    checks = commands(jobs["release"])[:2]
    assert all("GITHUB_REF_NAME" in check for check in checks)
    for tag, passes in ((f"v{version}", True), (f"v{version}1", False)):
        for check in checks:
            done = subprocess.run(
                ["bash", "-euc", check],
                cwd=ROOT,
                env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"},
            )
            assert (done.returncode == 0) == passes, (check, tag)
