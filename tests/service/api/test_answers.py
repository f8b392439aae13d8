"""Answers: what is not finite is null with a status in JSON, and itself in npy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.api.response.rendering import (
    altered_notes,
    images_answer,
    latents_answer,
    log_likelihoods_answer,
    scores_answer,
)
from service.codecs import JSON, NPY
from service.codecs.npy import decode_npy
from service.operations.results import Images, Latents, LogLikelihoods, Scores, Timing

TIMING = Timing(queue_seconds=0.0, compute_seconds=0.0)
NAN, INF = float("nan"), float("inf")


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
        anomalous=np.array([False, False, False]),
        status=["ok", "non_finite", "non_finite"],
        estimator="elbo",
        importance_samples=1,
        seed=0,
        kl_nats=np.array([[1.0, 2.0], [INF, 2.0], [NAN, NAN]]),
        timing=TIMING,
    )


def test_scores(scores):
    untouched = np.zeros(3, np.bool_)
    answer = scores_answer(scores, {}, altered=untouched, kl_groups=("a", "b"))
    results = json.loads(answer.body, parse_constant=pytest.fail)["results"]
    assert [r["log_likelihood_nats"] for r in results] == [-1.5, None, None]
    assert [r["status"] for r in results] == ["ok", "non_finite", "non_finite"]
    assert results[1]["kl_nats"] == {"a": None, "b": 2.0}
    assert answer.non_finite == 2
    values = LogLikelihoods(scores.log_likelihood_nats, 0, TIMING)
    binary = log_likelihoods_answer(values, altered=untouched)
    assert binary.non_finite == 2
    got = decode_npy(binary.body, dtypes=("float32",), max_items=3)
    assert np.array_equal(got, np.array([-1.5, -INF, NAN], np.float32), equal_nan=True)


def test_latents():
    values = np.array([[1.0, NAN], [0.5, 2.0]], np.float32)
    latents = Latents(values, values, TIMING)
    answer = latents_answer(latents, JSON, {"seed": None}, np.zeros(2, np.bool_))
    document = json.loads(answer.body, parse_constant=pytest.fail)
    assert document["latents"] == [[1.0, None], [0.5, 2.0]]
    assert document["status"] == ["non_finite", "ok"]
    assert answer.non_finite == 1


def test_images_count_what_was_altered():
    images = Images(np.zeros((2, 1, 4, 4), np.uint8), np.ones(2, np.bool_), TIMING)
    altered = np.array([True, False])
    assert images_answer(images, NPY, {"seed": 3}, altered=altered).altered == 1


def test_notes_name_the_images():
    assert altered_notes(np.zeros(3, np.bool_)) == []
    assert "images 1, 2;" in altered_notes(np.array([False, True, True]))[0]
    assert "19, ...;" in altered_notes(np.ones(30, np.bool_))[0]
