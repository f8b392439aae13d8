"""What OpenAPI says of every route, tried with requests made from it, good and bad ones.

No answer is a server error, or one that is not documented: its status, content type, headers and
JSON are compared with the document.
"""

from __future__ import annotations

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
SMALL = {
    "IAFVAE_MAX_N": "64",
    "IAFVAE_MAX_STREAM_N": "256",
    "IAFVAE_MAX_IMAGES": "32",
    "IAFVAE_MAX_ROWS": "256",
    "IAFVAE_MAX_IMPORTANCE_SAMPLES": "64",
}


@pytest.fixture(scope="module")
def small(launch):
    running = launch(**SMALL)
    yield running.url
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def operations(small):
    schema = schemathesis.openapi.from_url(f"{small}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 25
    return found


def name_a_model(case):
    """Any text is a name, but hardly one is of a model."""
    name = "tiny.score" if case.path.startswith("/v2") else "tiny"
    known = {"name": name, "model": name, "version": "1.2.3"}
    for parameter in case.path_parameters:
        case.path_parameters[parameter] = known[parameter]


def try_all(url, operations, examples):
    """How many requests got which status."""
    statuses = {}
    profile = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with requests.Session() as session:
        for operation in operations:
            # Without a body there is a text in the path at most, and none is wrong.
            modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
            for mode in modes:

                @profile
                @given(case=operation.as_strategy(generation_mode=mode))
                def attempt(case):
                    if sum(statuses.values()) % 2:
                        name_a_model(case)
                    answer = case.call_and_validate(base_url=url, session=session, checks=CHECKS)
                    # 504 is what the caller's own deadline gives, and documented.
                    assert answer.status_code not in (500, 501, 502, 503), answer.text
                    statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

                attempt()
    return statuses


def test_no_answer_is_a_server_error_or_undocumented(small, operations):
    statuses = try_all(small, operations, 4)
    assert statuses[200] > 10, "some requests are good"
    assert statuses[422] > 10, "some are bad"
    assert requests.get(f"{small}/livez", timeout=5).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_answer_of_very_many_is(small, operations):
    assert try_all(small, operations, 150)[200] > 300
