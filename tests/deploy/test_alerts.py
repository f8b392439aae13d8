"""The alerting rules speak of metrics, labels and outcomes that the service really has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.api.response.problems import PROBLEMS
from service.metrics import Metrics
from service.verdicts.drift import Drift

RULES = Path(__file__).resolve().parents[2] / "deploy" / "alerts.yml"
EXPRESSIONS = re.findall(r"^\s+expr: (.+)$", RULES.read_text(), re.MULTILINE)


def exposed() -> dict[str, set[str]]:
    """Every sample's name, with the labels it can have, after one of each was counted."""
    telemetry = Metrics()
    telemetry.request("score", "m", "ok", seconds=0.1, queue_seconds=0.0, compute_seconds=0.1)
    telemetry.non_finite("score", "m", 1)
    telemetry.models("failed", lambda: 1)
    telemetry.watch("ready", "1 if the process takes requests.", lambda: True)
    telemetry.watch("keys_file_failed", "As the application has it.", lambda: 0)
    telemetry.queued(lambda: {("score", "m"): 1})
    telemetry.drifting(lambda: {("m", "1.0.0"): Drift(100)})
    telemetry.model("m").dropped("score", 1, "expired")
    telemetry.model("m").retried("score", 1)
    text = telemetry.exposition()[0].decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules_ask_for_what_there_is(expression):
    known = exposed()
    asked = re.findall(r"(iafvae_\w+)(?:\{(\w+)=)?", expression)
    assert asked
    for name, label in asked:
        assert name in known
        assert not label or label in known[name]
    for grouping in re.findall(r"by \(([^)]+)\)", expression):
        labels = set(grouping.split(", ")) - {"instance"}  # which Prometheus adds
        assert all(labels <= known[name] for name, _ in asked)
    slugs = {problem.type for problem in PROBLEMS.values()}
    for outcomes in re.findall(r'outcome=~?"([^"]+)"', expression):
        assert set(outcomes.split("|")) <= slugs


def test_there_are_rules():
    assert len(EXPRESSIONS) == RULES.read_text().count("- alert:") > 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_reads_them():
    promtool = str(shutil.which("promtool"))
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
