"""Rules and dashboard, by the real Prometheus with the compose file's configuration, as processes
without containers: it scrapes the real service under load and is asked every panel's query and
every rule's expression.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.api.response.problems import PROBLEMS
from service.codecs.npy import encode_npy

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "chart" / "files"
RULES = FILES / "rules.yml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALL_RULES = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
SUBSTITUTES = {"$__rate_interval": "1m", "$job": ".*", "$operation": ".*", "$model": ".*"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed"
)


@needs_prometheus
def test_alerts_fire_on_what_they_are_for(tmp_path):
    text = Path(__file__).with_name("rules_test.yml").read_text().replace("RULES", str(RULES))
    (tmp_path / "rules_test.yml").write_text(text)
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "rules_test.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in ALL_RULES:
        if "alert" in rule:
            assert rule["alert"] in text


def test_outcomes_are_those_that_the_service_counts():
    slugs = {problem.type for problem in PROBLEMS.values()} | {"ok"}
    for expression in (rule["expr"] for rule in ALL_RULES):
        for outcomes in re.findall(r'outcome=~?"([^"]+)"', expression):
            assert set(outcomes.split("|")) <= slugs


def test_every_alert_is_explained_to_operators():
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in ALL_RULES:
        assert rule.get("alert", "IafvaeSlow") in page


def test_the_dashboard_is_what_its_program_writes():
    made = runpy.run_path(str(ROOT / "deploy" / "dashboard.py"))["dashboard"]()
    assert made == DASHBOARD


def test_only_what_falls_below_zero_is_shown_below_zero():
    """The martingale of a service in health does: an axis from 0 would show nothing of it."""
    signed = [p for p in DASHBOARD["panels"] if "min" not in p["fieldConfig"]["defaults"]]
    assert [p["targets"][0]["expr"] for p in signed] == ['iafvae_drift_log_martingale{job=~"$job"}']


def test_grafana_reads_the_dashboard_without_loss():
    """Grafana's own types, generated from its schema, hold every field."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    read = models.Dashboard.from_json(DASHBOARD)
    _held(DASHBOARD, json.loads(encoder.JSONEncoder().encode(read)))


def _held(given, read):
    if isinstance(given, dict):
        for key, value in given.items():
            _held(value, read[key])
    elif isinstance(given, list):
        for one, other in zip(given, read, strict=True):
            _held(one, other)
    else:
        assert given == read


def test_compose_mounts_what_there_is_and_listens_on_this_machine_alone():
    """The containers are not run here: the same processes are, by the tests below."""
    document = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    services = document["services"]
    assert {"cpu", "cuda", "prometheus", "grafana"} == set(services)
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for mount in service.get("volumes", ()):
            assert (ROOT / "deploy" / mount.split(":")[0]).is_file(), mount
    dashboard = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert any(f":{dashboard}:" in mount for mount in services["grafana"]["volumes"])


def test_down_ends_what_either_profile_has_started():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"].values()
    makefile = (ROOT / "Makefile").read_text()
    down = next(line for line in makefile.splitlines() if line.endswith(" down"))
    for profile in {name for service in compose for name in service.get("profiles", ())}:
        assert f"--profile {profile} " in down


@pytest.fixture(scope="module")
def prometheus(place, tiny_bundle):
    """Its API's address, after some seconds of load."""
    service, port = place.serve(tiny_bundle), place.free_port()
    url = f"http://127.0.0.1:{port}"
    text = (ROOT / "deploy" / "prometheus.yml").read_text()
    for there, here in {
        "service:8000": f"127.0.0.1:{service}",
        "rules.yml": str(RULES),
        "5s": "500ms",
    }.items():
        assert there in text
        text = text.replace(there, here)
    config = place.folder / "prometheus.yml"
    config.write_text(text)
    place.start(
        [
            *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={place.folder}/data"),
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        f"{url}/-/ready",
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{service}") as client:
        body = encode_npy(np.zeros((4, 4, 4), np.uint8))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for _ in range(20):
                client.post("/v1/sample", json={"n": 2}).raise_for_status()
                for path in ("score", "anomaly-map"):
                    client.post(
                        f"/v1/{path}", content=body, headers={"content-type": "application/x-npy"}
                    ).raise_for_status()
            if ask(url, "iafvae:request_seconds:p99_5m > 0"):
                break
    return url


def ask(url, expression):
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


@needs_prometheus
@pytest.mark.parametrize("operation", [".*", "anomaly_map"])
def test_every_query_of_the_dashboard_gives_numbers(prometheus, operation):
    """Also where an operation is chosen whose graph has another name."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in (SUBSTITUTES | {"$operation": operation}).items():
                query = query.replace(name, value)
            assert "$" not in query
            found = ask(prometheus, query)
            if "Empty in health" in panel["description"]:
                assert all(float(each["value"][1]) == 0 for each in found)
                continue
            assert found, panel["title"]
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert labels <= set(found[0]["metric"]), panel["title"]
            lowest = panel["fieldConfig"]["defaults"].get("min", -math.inf)
            assert all(float(each["value"][1]) >= lowest for each in found), panel["title"]


@needs_prometheus
def test_every_rule_is_computed_and_none_fires_in_health(prometheus):
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
    for rule in ALL_RULES:
        name = rule.get("alert") or rule["record"]
        assert loaded[name]["health"] == "ok", loaded[name]
        assert bool(ask(prometheus, rule["expr"])) == ("record" in rule), name
