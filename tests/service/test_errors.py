"""The tree of errors and its one table."""

from __future__ import annotations

import inspect

import pytest

from service import errors
from service.api.response.problems import PROBLEMS, problem_of
from service.errors import BadRequest, IafvaeError, Overloaded, WrongShape

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, IafvaeError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_its_own_row(kind):
    assert kind in PROBLEMS


@pytest.mark.parametrize("kind", [k for k in KINDS if issubclass(k, BadRequest)])
def test_the_callers_faults_are_4xx(kind):
    assert 400 <= PROBLEMS[kind].status < 500


def test_the_row_of_a_subclass_is_its_bases():
    class Odd(WrongShape):
        pass

    error = Odd("too odd")
    assert problem_of(error) is PROBLEMS[WrongShape]
    problem = problem_of(error)
    assert (problem.type, problem.status, str(error)) == ("wrong-shape", 422, "too odd")
    assert problem.title


def test_overloaded_says_when_to_come_back():
    assert Overloaded("full", 2.5).retry_after_seconds == 2.5
