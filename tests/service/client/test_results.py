"""What a notebook shows of results."""

from __future__ import annotations

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from service.client import Client, ProblemError
from service.client.results import score_table


@pytest.fixture
def client(server):
    return Client(http=server)


def test_images_are_shown(client):
    drawn = client.sample(4, seed=1)
    with Image.open(io.BytesIO(drawn._repr_png_())) as sheet:
        assert sheet.size == (2 * 6 + 2, 2 * 6 + 2)  # four of 4x4 pixels with gaps
    html = drawn._repr_html_()
    assert 'src="data:image/png;base64,' in html
    assert "4 x 1 x 4 x 4 of tiny@1.2.3 (cpu), seed 1" in html


def test_latents_are_no_picture(client, digits):
    coded = client.encode(digits)
    assert coded._repr_png_() is None
    assert "<img" not in coded._repr_html_()


def test_scores_are_a_table(client, digits):
    table = client.score(digits)
    html = table._repr_html_()
    assert html.count("<tr>") == 1 + len(digits)
    assert f"{table.log_likelihood_nats[0]:.4g}" in html
    strange = dataclasses.replace(table, notes=["<b>"], status=["<i>"] * len(digits))
    assert "<b>" not in strange._repr_html_()
    assert "<i>" not in strange._repr_html_()


ROW = {
    "log_likelihood_nats": -80.0,
    "bits_per_dim": None,
    "elbo_nats": -81.0,
    "standard_error_nats": None,
    "effective_sample_size": 1.0,
    "altered": False,
}


def test_no_verdict_is_not_a_good_one():
    rows = [
        ROW | {"p_value": 0.001, "anomalous": True, "status": "ok"},
        ROW | {"p_value": 0.5, "anomalous": False, "status": "ok"},
        ROW | {"p_value": None, "anomalous": False, "status": "not_calibrated"},
        ROW | {"p_value": 0.1, "anomalous": None, "status": "alpha_too_small"},
    ]
    common = {"estimator": "iwae", "importance_samples": 16, "seed": 0, "alpha": 0.01}
    model = {"model": "m", "version": "1", "notes": []}
    table = score_table({"results": rows, **common, **model})
    assert table.decided.tolist() == [True, True, False, False]
    assert table.anomalous.tolist() == [True, False, False, False]
    assert np.isnan(table.bits_per_dim).all()
    assert table._repr_html_().count("undecided") == 2


def test_an_error_comes_whole_out_of_a_worker_process(client):
    """What cannot be unpickled breaks a pool of processes, with every job in it."""
    with pytest.raises(ProblemError) as caught:
        client.score(np.zeros((1, 1, 5, 5), np.uint8))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert type(again) is ProblemError
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)
