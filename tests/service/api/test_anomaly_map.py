"""Anomaly maps over HTTP and from the command line, against the tiny model's residuals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.api.response.schemas import AnomalyMapResponse, ScoreResponse

NPY, PNG = "application/x-npy", "image/png"


@pytest.fixture(scope="module")
def usual(tiny_model):
    return tiny_model.images(3, seed=11)


def test_numbers_are_deviations_of_what_is_usual_at_a_pixel(post_npy, tiny, tiny_model, usual):
    answer = post_npy("/v1/anomaly-map", usual, accept=NPY)
    got = np.load(io.BytesIO(answer.content))
    places = tiny.reference(tiny_model).places
    softened = places["place_deviation"] + places["place_deviation"].mean()
    wanted = (tiny_model.at_zero(usual)["residual"] - places["place_mean"]) / softened
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_boxes_in_json(post_npy, usual):
    document = AnomalyMapResponse.model_validate(
        post_npy("/v1/anomaly-map", usual, params={"boxes": 2}).json()
    )
    assert [len(boxes) for boxes in document.results] == [1, 1, 1]  # four pixels hold one box
    box = document.results[0][0]
    assert (box.left, box.top, box.side) == (0, 0, 4)
    assert 0 < box.p_value <= 1
    assert document.calibration.images == 200
    assert any("one latent group" in note for note in document.notes)


def test_a_picture_with_its_scale(post_npy, usual):
    answer = post_npy("/v1/anomaly-map", usual, accept=PNG)
    with Image.open(io.BytesIO(answer.content)) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[2] == 3
    bar = pixels[:, -34]  # in the middle of the scale: red above, blue below
    assert bar[0, 0] > bar[0, 2]
    assert bar[-1, 2] > bar[-1, 0]


def test_without_calibration_there_is_no_map(tiny, serve, tmp_path, problem, usual):
    def uncalibrated(path):
        fields = {"calibration": None}
        fields["scoring"] = {
            **tiny.tiny_manifest()["scoring"],
            "calibrated_importance_samples": [],
        }
        return tiny.write_tiny_bundle(path, **fields).path

    client = serve(models=uncalibrated(tmp_path / "plain"))
    body = {"images": []}
    from service.codecs.png import png_base64

    body["images"] = png_base64(usual)
    said = problem(client.post("/v1/anomaly-map", json=body), 422, "invalid-input")
    assert "iafvae-train calibrate" in said
    result = client.post("/v1/score", json=body).json()["results"][0]
    assert (result["anomalous"], result["status"]) == (None, "not_calibrated")


def test_alpha_that_no_calibration_reaches(post_npy, usual):
    document = post_npy("/v1/score", usual, params={"alpha": 0.001}).json()
    ScoreResponse.model_validate(document)
    assert {(r["anomalous"], r["status"]) for r in document["results"]} == {
        (None, "alpha_too_small")
    }


def test_discoveries_and_their_note(post_npy, tiny_model):
    many = tiny_model.images(60, seed=12)
    document = post_npy("/v1/score", many, params={"fdr": 0.05}).json()
    assert {r["discovery"] for r in document["results"]} <= {True, False}
    assert any("discovers none unless 6 have" in note for note in document["notes"])
    assert document["fdr"] == 0.05
    plain = post_npy("/v1/score", many).json()
    assert {r["discovery"] for r in plain["results"]} == {None}
    assert plain["certified_alpha"] is None  # of 200 images, no threshold is sure
    loose = post_npy("/v1/score", many, params={"alpha": 0.1}).json()
    assert loose["certified_alpha"] == pytest.approx(13 / 201, abs=1 / 201)
    assert loose["calibration"] == {"name": "calibration", "images": 200, "date": "2026-01-31"}
    assert set(loose["results"][0]["evidence"]) == {
        "log_likelihood",
        "log_px_z",
        "residual/all",
        "largest_box",
    }
