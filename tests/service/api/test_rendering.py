"""Answers: what is not finite is null with a status in JSON, and itself in npy."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from service.api.response import rendering
from service.api.response.rendering import (
    SCORE_FIELDS,
    render_anomaly_maps,
    render_images,
    render_latents,
    render_log_likelihoods,
    render_scores,
)
from service.codecs import JSON, NPY
from service.codecs.fitting import Fitted
from service.codecs.npy import decode_npy
from service.operations.results import AnomalyMaps, Images, Latents, LogLikelihoods, Scores
from service.verdicts.reference import Box

TIMING = {"queue_seconds": 0.0, "compute_seconds": 0.0}
NAN, INF = float("nan"), float("inf")


def fitted(*altered, notes=()):
    pixels = np.zeros((len(altered), 1, 4, 4), np.uint8)
    return Fitted(pixels, np.array(altered, np.bool_), notes)


@pytest.fixture
def scores():
    values = np.array([-1.5, -INF, NAN])
    return Scores(
        log_likelihood_nats=values,
        bits_per_dim=-values,
        elbo_nats=values,
        standard_error_nats=np.full(3, NAN),
        effective_sample_size=np.ones(3),
        p_value=np.array([0.5, NAN, NAN]),
        anomalous=[False, None, None],
        discovery=[None, None, None],
        evidence={"log_likelihood": np.array([0.25, NAN, NAN])},
        status=["ok", "non_finite", "non_finite"],
        kl_nats=np.array([[1.0, 2.0], [INF, 2.0], [NAN, NAN]]),
        **TIMING,
    )


def test_scores(scores):
    untouched = fitted(False, False, False)
    answer = render_scores(scores, JSON, {}, fitted=untouched, kl_groups=("a", "b"))
    results = json.loads(answer.body, parse_constant=pytest.fail)["results"]
    assert [r["log_likelihood_nats"] for r in results] == [-1.5, None, None]
    assert [r["status"] for r in results] == ["ok", "non_finite", "non_finite"]
    assert [r["effective_sample_size"] for r in results] == [1.0, 1.0, 1.0]
    assert [r["anomalous"] for r in results] == [False, None, None]
    assert [r["evidence"] for r in results] == [{"log_likelihood": p} for p in (0.25, None, None)]
    assert results[0]["kl_nats"] == {"a": 1.0, "b": 2.0}
    assert results[1]["kl_nats"] == {"a": None, "b": 2.0}
    assert answer.non_finite == 2
    values = LogLikelihoods(nats=scores.log_likelihood_nats, seed=0, **TIMING)
    binary = render_log_likelihoods(values, fitted=untouched)
    assert dict(binary.raw_headers)[b"x-iafvae-seed"] == b"0"
    assert b"x-iafvae-seed" not in dict(answer.raw_headers)
    assert binary.non_finite == 2
    got = decode_npy(binary.body, dtypes=("float32",), max_items=3)
    assert np.array_equal(got, np.array([-1.5, -INF, NAN], np.float32), equal_nan=True)


def test_scores_without_a_calibration_are_numbers(scores):
    plain = replace(scores, **{name: np.zeros(3) for name in SCORE_FIELDS if name != "p_value"})
    answer = render_scores(plain, JSON, {}, fitted=fitted(*[False] * 3), kl_groups=("a", "b"))
    assert answer.non_finite == 0


def test_anomaly_maps():
    """One pixel that is no number is told of the image, and of its box."""
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, 2, 3] = NAN
    boxes = [[Box(0, 0, 4, 1.5, 0.25)], [Box(0, 0, 4, NAN, NAN)]]
    found = AnomalyMaps(maps=maps, boxes=boxes, **TIMING)
    answer = render_anomaly_maps(found, JSON, {}, fitted=fitted(False, False))
    results = json.loads(answer.body, parse_constant=pytest.fail)["results"]
    assert [[b["deviations"], b["p_value"]] for (b,) in results] == [[1.5, 0.25], [None, None]]
    assert answer.non_finite == 1


def test_latents():
    values = np.array([[1.0, NAN], [0.5, 2.0]], np.float32)
    latents = Latents(latents=values, prior_eps=values, **TIMING)
    answer = render_latents(latents, JSON, {}, fitted=fitted(False, False))
    document = json.loads(answer.body, parse_constant=pytest.fail)
    assert document["latents"] == [[1.0, None], [0.5, 2.0]]
    assert document["status"] == ["non_finite", "ok"]
    assert answer.non_finite == 1


def test_headers_and_notes_say_what_was_altered():
    images = Images(
        images=np.zeros((2, 1, 4, 4), np.uint8), finite=np.ones(2, np.bool_), seed=3, **TIMING
    )
    answer = render_images(images, NPY, {}, fitted=fitted(True, False))
    assert dict(answer.raw_headers)[b"x-iafvae-altered"] == b"1"
    assert dict(answer.raw_headers)[b"x-iafvae-seed"] == b"3"
    assert b"x-iafvae-altered" not in dict(render_images(images, NPY, {}).raw_headers)
    answer = render_images(images, JSON, {}, fitted=fitted(False, True, True, notes=("ink",)))
    notes = json.loads(answer.body)["notes"]
    assert "images 1, 2;" in notes[0]
    assert notes[1] == "ink"
    many = render_images(images, JSON, {}, fitted=fitted(*[True] * 30))
    assert "19, ...;" in json.loads(many.body)["notes"][0]


# ------------------------------------------------------------------ large answers

MANY = 1024
MOST_AT_ONCE = 2**18  # bytes: a few milliseconds


@pytest.fixture(scope="module")
def large():
    """Answers as large as they may be, made when they are called."""
    rng = np.random.default_rng(0)
    groups = tuple(f"group {i}" for i in range(16))
    scores = Scores(
        **{name: rng.normal(size=MANY) for name in SCORE_FIELDS},
        anomalous=[False] * MANY,
        discovery=[None] * MANY,
        evidence={f"evidence {i}": rng.normal(size=MANY) for i in range(8)},
        status=["ok"] * MANY,
        kl_nats=rng.normal(size=(MANY, len(groups))),
        **TIMING,
    )
    box = Box(left=1, top=2, side=3, deviations=1 / 3, p_value=1 / 7)
    maps = rng.normal(size=(MANY, 28, 28)).astype(np.float32)
    found = AnomalyMaps(maps=maps, boxes=[[box] * 16] * MANY, **TIMING)
    plain = fitted(*[False] * MANY)
    return {
        "scores": partial(render_scores, scores, JSON, {}, fitted=plain, kl_groups=groups),
        "boxes": partial(render_anomaly_maps, found, JSON, {}, fitted=plain),
        "maps": partial(render_anomaly_maps, found, JSON, {}, fitted=plain, maps=True),
    }


@pytest.mark.parametrize("name", ["scores", "boxes", "maps"])
def test_a_large_answer_is_made_in_parts(large, name, monkeypatch):
    """What makes one holds the interpreter until it returns, so that nobody else has a turn."""
    made = []

    def listening(function):
        def encode(value):
            made.append(function(value))
            return made[-1]

        return encode

    encode = listening(rendering.ENCODER.encode)
    monkeypatch.setattr(rendering, "ENCODER", SimpleNamespace(encode=encode))
    monkeypatch.setattr(rendering, "b64encode", listening(b64encode))
    size = len(large[name]().body)
    assert sum(map(len, made)) > 0.9 * size > MOST_AT_ONCE
    assert max(map(len, made)) <= MOST_AT_ONCE


def test_the_parts_of_a_large_answer_are_one_document(large):
    document = json.loads(large["maps"]().body)
    assert [len(boxes) for boxes in document["results"]] == [16] * MANY
    maps = decode_npy(b64decode(document["maps"]), dtypes=("float32",), max_items=10**7)
    assert np.array_equal(maps, large["maps"].args[0].maps)
    assert len(json.loads(large["scores"]().body)["results"]) == MANY
