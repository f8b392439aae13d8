"""OpenAPI: every route, every answer, with examples that hold; shown at `/docs`."""

from __future__ import annotations

import json
import re

import jsonschema_rs
import pytest


@pytest.fixture(scope="module")
def api(server):
    return server.get("/openapi.json").json()


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def every(api):
    """(path, method, operation), the path with its examples filled in."""
    for path, item in api["paths"].items():
        for method, operation in item.items():
            filled = path
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    filled = filled.replace(f"{{{parameter['name']}}}", parameter["example"])
            yield filled, method, operation


def with_bodies(api):
    for path, _, operation in every(api):
        if "requestBody" in operation:
            yield path, operation, operation["requestBody"]["content"]["application/json"]


def test_every_route_is_there(server, api):
    served = {route.path for route in server.app.routes if hasattr(route, "methods")}
    pages = {"/", "/docs", "/openapi.json"}
    assert set(api["paths"]) >= served - pages
    assert set(api["paths"]) >= {f"/v1/{o}" for o in ("sample", "score", "interpolate")}
    assert set(api["paths"]) >= {"/v1/models/{name}", "/livez", "/readyz", "/metrics"}
    assert set(api["paths"]) >= {"/v2", "/v2/models/{model}/infer", "/v2/models/{name}/config"}
    names = [operation["operationId"] for _, _, operation in every(api)]
    assert len(set(names)) == len(names)


def test_references_resolve(api):
    for reference in references(api):
        assert reference.removeprefix("#/components/schemas/") in api["components"]["schemas"]


def test_every_example_can_be_sent(server, api):
    for path, _, body in with_bodies(api):
        answer = server.post(path, json=body["example"])
        assert answer.status_code == 200, f"{path}: {answer.text}"


def test_whatever_needs_no_body_answers(server, api):
    for path, method, operation in every(api):
        if method == "get":
            answer = server.get(path)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in operation["responses"]["200"]["content"], path


def test_answers_hold_what_is_documented(server, api):
    for path, operation, body in with_bodies(api):
        described = operation["responses"]["200"]
        for accept in described["content"]:
            example = body["example"]
            if accept == "application/octet-stream":
                example = {**example, "parameters": {"binary_data_output": True}}
            answer = server.post(path, json=example, headers={"accept": accept})
            assert answer.headers["content-type"] == accept
            ours = {h for h in answer.headers if h.startswith(("x-iafvae", "x-req", "inference"))}
            assert ours <= set(described["headers"])


def test_every_json_has_an_example_that_is_one(api):
    components = {"components": api["components"]}
    for path, method, operation in every(api):
        contents = [*operation["responses"].items()]
        if "requestBody" in operation:
            contents.append(("body", operation["requestBody"]))
        for status, response in contents:
            for kind, content in response.get("content", {}).items():
                if kind.endswith("json"):
                    where = f"{method} {path} {status}"
                    assert content.get("example") not in (None, {}), where
                    schema = {**content["schema"], **components}
                    assert jsonschema_rs.is_valid(schema, content["example"]), where


def test_refusals_are_documented_in_their_protocols_form(api):
    for path, _, operation in every(api):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path not in ("/livez", "/readyz"):
                kind = "application/json" if path.startswith("/v2") else "application/problem+json"
                if status == "503" and path.startswith("/v2/health"):
                    kind = "application/json"
                assert list(response["content"]) == [kind], f"{path} {status}"
    for path, operation, _ in with_bodies(api):
        for status in ("400", "401", "413", "415", "422", "429", "503", "504"):
            assert status in operation["responses"], f"{path} {status}"
    assert "HTTPValidationError" not in json.dumps(api)


def test_options_are_described_with_their_bounds(api):
    parameters = {p["name"]: p for p in api["paths"]["/v1/sample"]["post"]["parameters"]}
    bounds = {"minimum": 1, "maximum": 2**63 - 1}
    assert parameters["n"]["schema"] == {"type": "integer", "format": "int64", **bounds}
    assert parameters["x-iafvae-timeout-seconds"]["in"] == "header"
    assert all(p["description"] for p in parameters.values())


def test_generated_clients_send_no_option_unasked(server, api):
    """They fill in a parameter's default; a query beside a JSON body is refused."""
    for path, operation, body in with_bodies(api):
        declared = [p for p in operation.get("parameters", ()) if p["in"] == "query"]
        filled = {p["name"]: p["schema"]["default"] for p in declared if "default" in p["schema"]}
        answer = server.post(path, params=filled, json=body["example"])
        assert answer.status_code == 200, f"{path}: {answer.text}"
    resize = next(
        p for p in api["paths"]["/v1/score"]["post"]["parameters"] if p["name"] == "resize"
    )
    assert resize["description"].endswith("Default false.")


def nodes(node):
    if isinstance(node, dict):
        yield node
    for value in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from nodes(value)


def test_integers_are_as_wide_as_a_seed(api):
    """Generators for Go, Java and C# take 32 bits where no format is stated."""
    integers = [node for node in nodes(api) if node.get("type") == "integer"]
    assert integers
    assert {node.get("format") for node in integers} == {"int64"}


def test_no_field_has_the_name_of_its_schema(api):
    """openapi-python-client calls a variable of the one by the name of the other."""
    for name, schema in api["components"]["schemas"].items():
        assert name.lower() not in schema.get("properties", {}), name


def test_a_value_is_one_kind_of_list(api):
    """Of two kinds of list generated types do not check."""
    for node in nodes(api):
        assert [kind.get("type") for kind in node.get("anyOf", ())].count("array") < 2, node


def test_keys_are_asked_for_where_they_may_be(api):
    assert api["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, _, operation in every(api):
        is_probe = re.fullmatch("/livez|/readyz|/v2/health/.*", path)
        assert ("security" in operation) is not bool(is_probe), path
        assert ("401" in operation["responses"]) is not bool(is_probe), path
