"""A few seconds of chaos on a real server; `benchmarks/chaos.py` has minutes of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from service.codecs.npy import encode_npy

ROOT = str(Path(__file__).resolve().parents[3])


@pytest.fixture(scope="module")
def chaos():
    """The module `benchmarks.storm.course`, which is not installed with the package."""
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    from benchmarks.storm import course

    return course


def editions(edition):
    names = ("tiny", "watched", "passing")
    return {name: [edition("1.9.0", name=name, build=b) for b in ("", "again")] for name in names}


def test_chaos_costs_nobody_a_true_answer(tmp_path, edition, chaos):
    how = chaos.Storm(seconds=2.0, clients=14)
    report = asyncio.run(chaos.storm(editions(edition), tmp_path, how))
    assert dict(report.faults) == {}
    told = report.tally.told
    assert {doing for doing, _ in told} >= set(chaos.HABITS), "every habit had its turn"
    assert told["asks", "right"] > 10
    assert any("swapped" in change for change in report.changes)


def test_the_judge_knows_wrong_answers(edition, chaos):
    """What decides in the chaos test decides against what was tampered with."""
    from benchmarks.storm.judge import BareGraphs, Judge, asks

    bundles = [edition("1.9.0", name="tiny", build=build) for build in ("", "again")]
    asked = asks((1, 4, 4), streamed=80)
    judge = Judge(bundles, asked)
    one, other = map(BareGraphs, bundles)
    for ask in asked:
        if ask.name.startswith("infer"):
            continue  # its body is JSON
        right = ask.right(one)
        assert judge.problem(ask, one.hash, encode_npy(right)) is None, ask.name
        assert "not what" in judge.problem(ask, one.hash, encode_npy(ask.right(other)))
        assert "instead of" in judge.problem(ask, one.hash, encode_npy(right[:-1]))
        near = right.copy()
        near.flat[0] = near.flat[0] ^ 1 if right.dtype.kind == "u" else near.flat[0] * (1 + 1e-6)
        assert "other bytes" in judge.problem(ask, one.hash, encode_npy(near))
        assert "cannot be read" in judge.problem(ask, one.hash, b"")
        assert "nobody" in judge.problem(ask, "", encode_npy(right))
