"""Write the Grafana dashboard: `python deploy/dashboard.py > deploy/chart/files/dashboard.json`.

One row of `PANELS` is a panel: its title, unit, queries by legend, and in which case a healthy
service gives no data. `tests/deploy/test_monitoring.py` asks a real Prometheus every query.
"""

from __future__ import annotations

import json
from typing import Any

RATE = "[$__rate_interval]"
CHOSEN = '{job=~"$job", operation=~"$operation", model=~"$model"}'
# Batches and what waits are counted by graph: an operation of HTTP chooses none, or another's.
OF_GRAPHS = '{job=~"$job", model=~"$model"}'
OF_JOB = '{job=~"$job"}'
HEALTHY = "Empty in health."
DRIFT = "Drift from the calibration: log martingale, alarm above 3"  # below 0 in health


def rate(metric: str, by: str, where: str = CHOSEN) -> str:
    """Increase a second of a counter, summed."""
    return f"sum by ({by}) (rate(iafvae_{metric}{where}{RATE}))"


def quantile(q: float, metric: str, by: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'{by}, le')})"


def mean(metric: str, by: str, where: str = CHOSEN) -> str:
    """The mean of a histogram."""
    return f"{rate(f'{metric}_sum', by, where)} / {rate(f'{metric}_count', by, where)}"


REFUSED = CHOSEN[:-1] + ', outcome!="ok"}'
LEGEND = "{{operation}} {{model}}"
PANELS: list[tuple[str, str, dict[str, str], str]] = [
    ("Requests", "reqps", {LEGEND: rate("requests_total", "operation, model")}, ""),
    (
        "Refusals and errors by reason",
        "reqps",
        {"{{outcome}}": rate("requests_total", "outcome", REFUSED)},
        HEALTHY,
    ),
    ("In flight", "short", {"{{instance}}": f"iafvae_requests_in_flight{OF_JOB}"}, ""),
    *(
        (
            f"Latency p{100 * q:g}",
            "s",
            {LEGEND: quantile(q, "request_seconds", "operation, model")},
            "",
        )
        for q in (0.5, 0.95, 0.99)
    ),
    (
        "Waiting and computing, mean",
        "s",
        {
            "{{operation}} waits": mean("queue_seconds", "operation"),
            "{{operation}} computes": mean("compute_seconds", "operation"),
        },
        "",
    ),
    (
        "Rows that wait",
        "short",
        {LEGEND: f"sum by (operation, model) (iafvae_queue_rows{OF_GRAPHS})"},
        "",
    ),
    (
        "Rows of a batch, mean",
        "short",
        {LEGEND: mean("batch_rows", "operation, model", OF_GRAPHS)},
        "",
    ),
    (
        "Rows computed",
        "rowsps",
        {LEGEND: rate("batch_rows_sum", "operation, model", OF_GRAPHS)},
        "",
    ),
    (
        "Padded rows, as a share",
        "percentunit",
        {
            LEGEND: f"{rate('padded_rows_total', 'operation, model', OF_GRAPHS)} / "
            f"{rate('batch_rows_sum', 'operation, model', OF_GRAPHS)}"
        },
        "",
    ),
    (
        "Rows dropped by reason",
        "rowsps",
        {"{{reason}}": rate("dropped_rows_total", "reason", OF_GRAPHS)},
        HEALTHY,
    ),
    (
        "Batches run again",
        "ops",
        {LEGEND: rate("batch_retries_total", "operation, model", OF_GRAPHS)},
        HEALTHY,
    ),
    (
        "Results that are no numbers",
        "cps",
        {LEGEND: rate("non_finite_results_total", "operation, model")},
        HEALTHY,
    ),
    (
        DRIFT,
        "short",
        {"{{model}} {{version}} {{instance}}": f"iafvae_drift_log_martingale{OF_JOB}"},
        "",
    ),
    (
        "Versions",
        "short",
        {
            "{{model}} {{version}} {{provider}} {{bundle}}": "count by (model, version, provider, "
            f"bundle) (iafvae_model_info{OF_JOB})"
        },
        "",
    ),
    ("Models by state", "short", {"{{state}}": f"sum by (state) (iafvae_models{OF_JOB})"}, ""),
    (
        "Ready",
        "short",
        {"{{instance}}": f"iafvae_ready{OF_JOB}"},
        "",
    ),
    ("Memory", "bytes", {"{{instance}}": f"process_resident_memory_bytes{OF_JOB}"}, ""),
    (
        "Cores in use",
        "short",
        {"{{instance}}": f"rate(process_cpu_seconds_total{OF_JOB}{RATE})"},
        "",
    ),
    ("Bytes held", "bytes", {"{{instance}}": f"iafvae_held_bytes{OF_JOB}"}, ""),
]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel(number: int, title: str, unit: str, queries: dict[str, str], note: str) -> dict[str, Any]:
    """A graph; three stand beside each other."""
    scale = {"unit": unit} if title == DRIFT else {"unit": unit, "min": 0}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": note,
        "datasource": SOURCE,
        "gridPos": {"x": 8 * (number % 3), "y": 8 * (number // 3), "w": 8, "h": 8},
        "fieldConfig": {"defaults": scale, "overrides": []},
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(queries.items())
        ],
    }


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of label values, looked up whenever the dashboard is loaded."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": "iafvae",
        "title": "iafvae",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1},
                variable("job", "label_values(iafvae_ready, job)"),
                variable("operation", "label_values(iafvae_requests_total, operation)"),
                variable("model", "label_values(iafvae_requests_total, model)"),
            ]
        },
        "panels": [panel(i, *row) for i, row in enumerate(PANELS)],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
