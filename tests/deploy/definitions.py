"""Write definitions.json, the schemas of custom resources that `test_chart.py` checks against:

    python tests/deploy/definitions.py PROJECT@VERSION/FILE ... > tests/deploy/definitions.json

reads PROJECT@VERSION/FILE below the working directory; definitions.json says which it was made of.
Of a CustomResourceDefinition the schemas in `KINDS` are kept without descriptions and rules in CEL,
closed to unknown fields, as the API server would drop them; what occurs twice is written once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

KINDS = {
    "gateway.networking.k8s.io/v1": {"HTTPRoute"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "monitoring.coreos.com/v1": {"PrometheusRule", "ServiceMonitor"},
    "serving.kserve.io/v1alpha1": {"ServingRuntime"},
    "serving.kserve.io/v1beta1": {"InferenceService"},
}
KEPT = {
    *("type", "properties", "required", "items", "enum", "pattern", "minimum", "maximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("additionalProperties", "anyOf", "oneOf", "allOf", "not"),
}
SMALL = 60  # characters: what is shorter is written again
Schema = dict[str, Any]


def within(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """`schema` with its parts changed."""
    parts = {
        word: change(schema[word])
        for word in ("items", "additionalProperties")
        if isinstance(schema.get(word), dict)
    }
    if "properties" in schema:
        parts["properties"] = {name: change(each) for name, each in schema["properties"].items()}
    return {**schema, **parts}


def closed(schema: Schema) -> Schema:
    """`schema` without what is not checked, that refuses unknown fields."""
    kept = within({word: value for word, value in schema.items() if word in KEPT}, closed)
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def once(schemas: dict[str, Schema]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The schemas with references for what occurs twice, and what these refer to."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    parts: dict[str, Schema] = {}

    def count(schema: Schema) -> Schema:
        told = json.dumps(schema)
        seen[told] += 1
        return within(schema, count) if seen[told] == 1 else schema

    def refer(schema: Schema) -> Schema:
        told = json.dumps(schema)
        if seen[told] < 2 or len(told) < SMALL:
            return within(schema, refer)
        if told not in names:
            names[told] = f"{len(names)}"
            parts[names[told]] = within(schema, refer)
        return {"$ref": f"#/$defs/{names[told]}"}

    for schema in schemas.values():
        count(schema)
    return {name: refer(schema) for name, schema in schemas.items()}, parts


def definitions(files: list[str]) -> dict[str, Any]:
    """What is written."""
    schemas: dict[str, Schema] = {}
    for file in files:
        spec = yaml.safe_load(Path(file).read_text())["spec"]
        for version in spec["versions"]:
            api, kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            if kind in KINDS.get(api, ()):
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                schemas[f"{api} {kind}"] = schema
    lacking = {f"{api} {kind}" for api, kinds in KINDS.items() for kind in kinds} - set(schemas)
    if lacking:
        raise SystemExit(f"no file defines {sorted(lacking)}")
    found, parts = once(schemas)
    return {"from": files, "license": "Apache-2.0", "schemas": found, "$defs": parts}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(definitions(sys.argv[1:]), separators=(",", ":")) + "\n")
