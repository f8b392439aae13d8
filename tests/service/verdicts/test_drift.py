"""The martingale of drift: fair by counting all orders, by Ville's bound, and quick to notice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from service.verdicts.conformal import upper
from service.verdicts.drift import ALARM, EDGES, REMEMBERED, Drift


def p_values(rng, n, images, shift=0.0):
    """Of a stream of normal numbers among `n` calibration ones."""
    reference = np.sort(rng.normal(size=n).astype(np.float32))
    return upper(rng.normal(shift, size=images), reference).tolist()


def first_alarm(drift, stream, first=0):
    """Index of the image at which `drift` gives alarm, None if it does not."""
    return next((i for i, p in enumerate(stream) if drift.add([first + i], [p])), None)


@pytest.mark.parametrize(("calibration", "stream"), [(3, 3), (5, 2), (1, 5)])
def test_over_all_orders_the_mean_is_one(calibration, stream):
    """Exchangeable means that every order is as likely: the martingale's mean over them is 1."""
    capitals = []
    for order in itertools.permutations(range(calibration + stream)):
        reference = np.sort(np.array(order[:calibration], np.float32))
        drift = Drift(calibration)
        p = upper(np.array(order[calibration:], np.float64), reference)
        drift.add(range(stream), p.tolist())
        capitals.append(math.exp(drift.log_martingale))
    assert len(set(np.round(capitals, 9))) > 1
    assert math.isclose(math.fsum(capitals) / len(capitals), 1.0, rel_tol=1e-9)


@pytest.mark.parametrize(("calibration", "images"), [(60, 400), (2500, 400)])
def test_without_drift_one_stream_in_twenty_gives_alarm(calibration, images):
    rng = np.random.default_rng(5)
    streams = [p_values(rng, calibration, images) for _ in range(200)]
    alarms = sum(first_alarm(Drift(calibration), stream) is not None for stream in streams)
    assert alarms <= len(streams) / 20


@pytest.mark.parametrize(("shift", "before", "within"), [(3, 0, 10), (1, 0, 100), (3, 4000, 50)])
def test_drift_is_noticed_whenever_it_begins(shift, before, within):
    rng = np.random.default_rng(1)
    reference = np.sort(rng.normal(size=2500).astype(np.float32))
    usual = upper(rng.normal(size=before), reference).tolist()
    changed = upper(rng.normal(shift, size=500), reference).tolist()
    drift = Drift(2500)
    assert first_alarm(drift, usual) is None
    assert first_alarm(drift, changed, before) < within
    assert first_alarm(drift, changed, 10_000) is None  # said once
    assert drift.log_martingale > math.log(ALARM)


def test_the_alarm_is_of_any_image_of_a_request():
    """Images that follow in the same one do not hide it."""
    usual = np.random.default_rng(2).permutation(np.arange(1, 401) / 400)
    values = [0.001] * 10 + usual.tolist()
    drift = Drift(999)
    assert drift.add(range(len(values)), values)
    assert drift.log_martingale < math.log(ALARM)
    assert not drift.add([1000], [0.001])  # said once


def test_too_usual_is_drift_as_well():
    drift = Drift(2500)
    assert first_alarm(drift, [0.97 + 0.0001 * i for i in range(300)]) < 100


def test_a_repeated_image_counts_once():
    drift = Drift(100)
    drift.add([7], [1 / 101])
    once = drift.log_martingale, list(drift.counts)
    for _ in range(1000):
        drift.add([7, 7], [1 / 101, 1 / 101])
    assert (drift.log_martingale, drift.counts) == once
    drift.add(range(100, 100 + REMEMBERED), [math.nan] * REMEMBERED)
    assert (drift.log_martingale, drift.counts) == once  # what has no p-value counts for nothing


def test_only_so_many_images_are_remembered():
    drift = Drift(100)
    drift.add(range(REMEMBERED + 10), itertools.repeat(0.5, REMEMBERED + 10))
    assert drift.images == REMEMBERED + 10
    drift.add([REMEMBERED], [0.5])
    assert drift.images == REMEMBERED + 10
    drift.add([0], [0.5])
    assert drift.images == REMEMBERED + 11


def test_an_image_that_comes_again_and_again_is_never_forgotten(monkeypatch):
    """A camera that sends the same frame all day is no drift."""
    monkeypatch.setattr("service.verdicts.drift.REMEMBERED", 100)
    drift = Drift(100)
    for first in range(0, 400, 50):
        drift.add([-1], [1 / 101])
        drift.add(range(first, first + 50), itertools.repeat(0.5, 50))
    assert drift.images == 1 + 400


@pytest.mark.parametrize("calibration", [1, 7, 99, 600, 2500])
def test_every_p_value_has_its_bucket(calibration):
    drift = Drift(calibration)
    ranks = np.arange(1, calibration + 2)
    p = ranks / (calibration + 1)
    drift.add(ranks.tolist(), p.tolist())
    wanted = [int(np.sum(p <= edge + 1e-12)) for edge in EDGES]
    assert [count for _, count in drift.buckets] == wanted
    assert drift.buckets[-1] == ("+Inf", calibration + 1)
    assert drift.p_sum == pytest.approx(p.sum())
