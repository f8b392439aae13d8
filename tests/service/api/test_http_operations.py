"""Every operation through HTTP, compared with the tiny model in NumPy, in every form."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from service.api.response.schemas import EncodeResponse, ImagesResponse, ScoreResponse
from service.codecs.npy import decode_npy, encode_npy
from service.noise import Purpose, image_keys, normal, uniform

NPY_TYPE = "application/x-npy"
NPY = {"content-type": NPY_TYPE}
RNG = np.random.default_rng(0)


def npy_of(response, dtype="uint8"):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-npy"
    return decode_npy(response.content, dtypes=(dtype,), max_items=10**7)


def pixels_of(base64_png):
    with Image.open(io.BytesIO(base64.b64decode(base64_png))) as image:
        return np.asarray(image)


def png(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def in_colour(image):
    return base64.b64encode(png(np.stack([image[0]] * 3, -1))).decode()


def as_pixels(mean):
    return np.round(255 * mean.astype(np.float64)).astype(np.uint8)


# ------------------------------------------------------------------ sample


def test_sample_at_temperature_zero_is_the_prior_mean_decoded(server, tiny_model):
    response = server.post("/v1/sample", json={"n": 3, "temperature": 0})
    document = ImagesResponse.model_validate(response.json())
    expected = tiny_model.decode(tiny_model.prior_mean[None], np.zeros((1, 16)))["mean"]
    for image in document.images:
        assert np.abs(pixels_of(image).astype(int) - as_pixels(expected)[0, 0]).max() <= 1
    assert document.shape == [3, 1, 4, 4]
    assert document.temperature == [0.0]


def test_sample_in_its_three_forms_is_the_same(server):
    request = {"n": 5, "seed": 4, "temperature": [0.8], "output": "draw"}
    document = server.post("/v1/sample", json=request).json()
    array = npy_of(server.post("/v1/sample", json=request, headers={"accept": "application/x-npy"}))
    assert array.shape == (5, 1, 4, 4)
    assert set(np.unique(array)) <= {0, 255}
    assert np.array_equal(np.stack([pixels_of(i) for i in document["images"]]), array[:, 0])
    sheet = server.post("/v1/sample", json=request, headers={"accept": "image/png"})
    assert sheet.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(sheet.content)) as image:
        assert image.size == (3 * 6 + 2, 2 * 6 + 2)
        assert np.array_equal(np.asarray(image)[2:6, 8:12], array[1, 0])


def test_sample_without_a_body_takes_query_parameters(server):
    response = server.post("/v1/sample?n=2&seed=5", headers={"accept": "application/x-npy"})
    same = server.post("/v1/sample", json={"n": 2, "seed": 5}, headers={"accept": "*/*"})
    assert np.array_equal(
        npy_of(response)[:, 0], [pixels_of(image) for image in same.json()["images"]]
    )
    assert server.post("/v1/sample").json()["shape"] == [1, 1, 4, 4]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "text/plain"]
)
def test_an_empty_body_is_none_whatever_its_type(server, kind):
    answer = server.post("/v1/sample?n=3&seed=5", headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    assert answer.json()["images"] == server.post("/v1/sample?n=3&seed=5").json()["images"]


def test_a_seed_that_the_server_draws_draws_the_same_again(server):
    first = server.post("/v1/sample", json={"n": 2})
    seed = first.json()["seed"]
    assert first.headers["x-iafvae-seed"] == str(seed)
    assert (
        server.post("/v1/sample", json={"n": 2, "seed": seed}).json()["images"]
        == first.json()["images"]
    )
    assert server.post("/v1/sample", json={"n": 2}).json()["seed"] != seed


def test_images_do_not_depend_on_how_many_are_drawn(server):
    many = npy_of(server.post("/v1/sample?n=300&seed=1", headers={"accept": "application/x-npy"}))
    few = npy_of(server.post("/v1/sample?n=7&seed=1", headers={"accept": "application/x-npy"}))
    assert np.array_equal(many[:7], few)


# ------------------------------------------------------------------ score


def test_scores_agree_with_the_oracle(server, tiny_model, tiny):
    """The noise is the service's contract, everything after it is computed by NumPy."""
    images, k = tiny_model.images(20, seed=8), 100
    response = server.post(
        f"/v1/score?importance_samples={k}&seed=5", content=encode_npy(images), headers=NPY
    )
    document = ScoreResponse.model_validate(response.json())
    keys, draws = np.repeat(image_keys(images), k), np.tile(np.arange(k, dtype=np.uint64), 20)
    eps = normal(5, keys, draws, tiny.D, Purpose.IMAGE)
    weights = tiny_model.score(images, np.repeat(np.arange(20), k), eps)["log_weight"]
    weights = weights.reshape(20, k)
    got = np.array([result.log_likelihood_nats for result in document.results])
    assert np.allclose(got, np.logaddexp.reduce(weights, axis=1) - math.log(k), atol=1e-4)
    elbos = [result.elbo_nats for result in document.results]
    assert np.allclose(elbos, weights.mean(axis=1), atol=1e-3)
    assert np.all(np.array(elbos) <= got)
    bits = [result.bits_per_dim for result in document.results]
    assert np.allclose(bits, -got / (16 * math.log(2)))
    assert document.estimator == "importance_weighted"
    assert {result.status for result in document.results} == {"not_calibrated"}
    assert all(r.p_value is None and not r.anomalous for r in document.results)


def test_p_values_at_the_default_k(server, tiny_model, post_npy):
    document = post_npy("/v1/score", tiny_model.images(50, seed=9)).json()
    assert (document["importance_samples"], document["seed"], document["alpha"]) == (16, 0, 0.01)
    values = [result["p_value"] for result in document["results"]]
    assert 0.3 < np.mean(values) < 0.7
    assert all(round(p * 201) == pytest.approx(p * 201) for p in values), "add-one over 200"
    everything = post_npy("/v1/score?alpha=0.999", tiny_model.images(50, seed=9)).json()
    flags = [result["anomalous"] for result in everything["results"]]
    assert flags == [p <= 0.999 for p in values]


def test_one_importance_sample_is_the_elbo(server, digits, post_npy):
    document = post_npy("/v1/score?importance_samples=1", digits).json()
    assert document["estimator"] == "elbo"
    for result in document["results"]:
        assert result["standard_error_nats"] is None
        assert result["log_likelihood_nats"] == pytest.approx(result["elbo_nats"])
        assert set(result["kl_nats"]) == {"z"}


def test_a_standard_error_that_means_nothing_is_noted(server, digits, post_npy):
    for k in (2, 64):
        document = post_npy(f"/v1/score?importance_samples={k}", digits).json()
        sizes = [result["effective_sample_size"] for result in document["results"]]
        noted = any("effective sample size is below 2" in note for note in document["notes"])
        assert noted == (min(sizes) < 2), (k, sizes)


def test_scores_as_npy(server, digits, post_npy):
    document = post_npy("/v1/score", digits).json()
    array = npy_of(post_npy("/v1/score", digits, accept="application/x-npy"), "float32")
    expected = [result["log_likelihood_nats"] for result in document["results"]]
    assert array.dtype == np.float32
    assert np.array_equal(array, np.array(expected, np.float32))


def test_every_form_of_images_scores_the_same(server, digits, post_npy):
    reference = post_npy("/v1/score", digits).json()["results"]
    files = [png(image[0]) for image in digits]
    texts = [base64.b64encode(file).decode() for file in files]
    forms = [
        post_npy("/v1/score", digits[:, 0]),
        post_npy("/v1/score", digits.transpose(0, 2, 3, 1)),
        post_npy("/v1/score", np.repeat(digits, 3, axis=1)),
        server.post("/v1/score", json={"images": texts}),
        server.post("/v1/score", json={"images": [f"data:image/png;base64,{t}" for t in texts]}),
        server.post("/v1/score", files=[("files", (f"{i}.png", f)) for i, f in enumerate(files)]),
        server.post("/v1/score", json={"images": [in_colour(image) for image in digits]}),
    ]
    for response in forms:
        assert response.json()["results"] == reference


@pytest.mark.parametrize("inline", [0, 2**18])
def test_arrays_in_any_order_of_memory_are_the_same(server, digits, monkeypatch, inline):
    monkeypatch.setattr("service.api.request.inputs.INLINE_PIXELS", inline)

    def post(path, array):
        file = io.BytesIO()
        np.save(file, array)
        return npy_of(
            server.post(path, content=file.getvalue(), headers=NPY | {"accept": NPY_TYPE}), "uint8"
        )

    images, z = digits.repeat(2, axis=2), RNG.normal(size=(5, 3)).astype(np.float32)
    for path, array in (
        ("/v1/reconstruct", digits),
        ("/v1/reconstruct?resize=true", images),
        ("/v1/decode", z),
        ("/v1/sample?resample=", z),
    ):
        expected = post(path, array)
        assert np.array_equal(post(path, np.asfortranarray(array)), expected)
        swapped = array.astype(array.dtype.newbyteorder(">"))
        assert np.array_equal(post(path, swapped), expected)


def test_one_image_file_as_the_body(server, digits, post_npy):
    headers = {"content-type": "image/png"}
    response = server.post("/v1/score?seed=3", content=png(digits[0, 0]), headers=headers)
    assert response.json()["results"] == post_npy("/v1/score?seed=3", digits[:1]).json()["results"]


def test_a_score_does_not_depend_on_its_neighbours(server, digits, post_npy):
    together = post_npy("/v1/score", digits).json()["results"]
    alone = [post_npy("/v1/score", digits[i : i + 1]).json()["results"][0] for i in range(6)]
    assert alone == together


def test_form_fields_are_options(server, digits):
    files = [("files", ("a.png", png(digits[0, 0])))]
    response = server.post("/v1/score?seed=2", files=files, data={"importance_samples": "1"})
    document = response.json()
    assert (document["importance_samples"], document["seed"]) == (1, 2)


def test_altered_images_are_said_to_be(server):
    big, right = png(np.full((9, 9), 200, np.uint8)), png(np.full((4, 4), 200, np.uint8))
    files = [("files", ("big.png", big)), ("files", ("right.png", right))]
    response = server.post("/v1/score?resize=true", files=files)
    document = response.json()
    assert [result["altered"] for result in document["results"]] == [True, False]
    assert "images 0;" in document["notes"][0]
    assert "p-values" in document["notes"][0]
    assert response.headers["x-iafvae-altered"] == "1"
    untouched = server.post("/v1/score", files=files[1:])
    assert untouched.json()["notes"] == []
    assert "x-iafvae-altered" not in untouched.headers


# ------------------------------------------------------------------ encode, decode, the rest


def test_encode_at_the_centre_is_the_posterior_mean(server, digits, tiny_model, post_npy):
    seen = uniform(0, image_keys(digits), 0, 16, Purpose.PIXELS)  # grey pixels, black or white
    expected = tiny_model.posterior_mean(digits, seen)
    array = npy_of(post_npy("/v1/encode", digits, accept="application/x-npy"), "float32")
    assert np.allclose(array, expected, atol=1e-5)
    response = post_npy("/v1/encode", digits)
    document = EncodeResponse.model_validate(response.json())
    assert np.array_equal(np.array(document.latents, np.float32), array)
    assert document.seed is None
    assert "x-iafvae-seed" not in response.headers


def test_encode_with_a_seed_draws(server, digits, tiny_model, post_npy):
    same = np.repeat(digits[:1], 2, axis=0)
    drawn = npy_of(post_npy("/v1/encode?seed=1", same, accept="application/x-npy"), "float32")
    assert np.array_equal(drawn[0], drawn[1]), "noise is a function of the image"
    assert not np.allclose(drawn, tiny_model.posterior_mean(same))


def test_decode_npy_and_json(server, tiny_model, post_npy):
    latents = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32)
    expected = as_pixels(tiny_model.decode(latents, np.zeros((4, 16)))["mean"])
    array = npy_of(post_npy("/v1/decode", latents, accept="application/x-npy"))
    assert np.abs(array.astype(int) - expected).max() <= 1
    listed = server.post("/v1/decode", json={"latents": latents.tolist()}).json()
    assert np.array_equal([pixels_of(i) for i in listed["images"]], array[:, 0])


def test_decode_draws_with_a_seed(server, post_npy):
    latents = np.zeros((3, 3), np.float32)
    path = "/v1/decode?output=draw&seed=9"
    first = npy_of(post_npy(path, latents, accept="application/x-npy"))
    assert set(np.unique(first)) <= {0, 255}
    assert np.array_equal(first, npy_of(post_npy(path, latents, accept="application/x-npy")))


def test_reconstruction_is_encode_then_decode_and_says_at_what(server, digits, post_npy):
    latents = npy_of(post_npy("/v1/encode", digits, accept="application/x-npy"), "float32")
    decoded = npy_of(post_npy("/v1/decode", latents, accept="application/x-npy"))
    again = npy_of(post_npy("/v1/reconstruct", digits, accept="application/x-npy"))
    assert np.array_equal(again, decoded)
    document = post_npy("/v1/reconstruct", digits).json()
    assert document["seed"] is None
    assert "eps = 0" in document["notes"][0]
    assert post_npy("/v1/reconstruct?seed=1", digits).json()["notes"] == []


def test_interpolation_begins_and_ends_with_the_reconstructions(server, digits, post_npy):
    path = npy_of(post_npy("/v1/interpolate?n=5", digits[:2], accept="application/x-npy"))
    ends = npy_of(post_npy("/v1/reconstruct", digits[:2], accept="application/x-npy"))
    assert path.shape == (5, 1, 4, 4)
    assert np.abs(path[[0, -1]].astype(int) - ends).max() <= 1


# ------------------------------------------------------------------ what all answers carry


def test_headers_say_who_computed_it(server, digits, post_npy):
    response = post_npy("/v1/score?seed=6", digits)
    bundle = server.app.state.shared.registry.find().runtime.bundle
    headers = response.headers
    assert headers["x-iafvae-model"] == "tiny"
    assert headers["x-iafvae-version"] == "1.2.3"
    assert headers["x-iafvae-bundle"] == bundle.hash
    assert headers["x-iafvae-provider"] == "cpu"
    assert headers["x-iafvae-precision"] == "float32"
    assert headers["x-iafvae-seed"] == "6"
    assert float(headers["x-iafvae-queue-seconds"]) >= 0
    assert float(headers["x-iafvae-compute-seconds"]) > 0


def test_a_model_may_be_named(server, digits, post_npy):
    assert post_npy("/v1/score?model=tiny", digits).json()["model"] == "tiny"


def test_large_requests_are_split_and_put_together(serve, tiny_model):
    client = serve(max_batch_rows=8)
    images = tiny_model.images(50, seed=2)
    whole = client.post("/v1/score", content=encode_npy(images), headers=NPY).json()["results"]
    part = client.post("/v1/score", content=encode_npy(images[40:]), headers=NPY).json()["results"]
    assert whole[40:] == part
