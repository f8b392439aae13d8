"""Images changed in the prior's noise, on a model of two latent groups, and ways between them."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.response.schemas import EncodeResponse, ImagesResponse
from service.codecs.npy import decode_npy, encode_npy
from service.noise import Purpose, image_keys, normal, uniform

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
GROUPS = ["top", "low"]  # one latent and two


@pytest.fixture(scope="module")
def two_groups(tiny, tmp_path_factory, serve_for_module):
    path = tmp_path_factory.mktemp("ladders") / "tiny"
    tiny.write_tiny_bundle(path, latent=tiny.TWO_GROUPS)
    return serve_for_module(models=path)


@pytest.fixture(scope="module")
def ask(two_groups):
    """POST an array; gives the array of the answer."""

    def post(path, array=None, dtype="uint8", **options):
        params = {k: v for k, v in options.items() if v is not None}
        body = None if array is None else encode_npy(array)
        headers = NPY if array is not None else {"accept": NPY["accept"]}
        answer = two_groups.post(path, content=body, headers=headers, params=params)
        assert answer.status_code == 200, answer.text
        return decode_npy(answer.content, dtypes=(dtype,), max_items=10**7)

    return post


@pytest.fixture(scope="module")
def prior_eps(ask, digits):
    return ask("/v1/encode", digits, "float32", output="prior_eps")


def near(images, others):
    return np.abs(images.astype(int) - others).max() <= 1


def test_encode_gives_the_noise_beside_the_latents(two_groups, ask, digits, prior_eps, tiny_model):
    answer = two_groups.post(
        "/v1/encode", content=encode_npy(digits), headers={"content-type": NPY["content-type"]}
    )
    document = EncodeResponse.model_validate(answer.json())
    assert np.array_equal(np.array(document.prior_eps, np.float32), prior_eps)
    assert np.array_equal(
        np.array(document.latents, np.float32), ask("/v1/encode", digits, "float32")
    )
    seeds, keys = np.zeros(6, np.uint64), image_keys(digits)
    u_image = uniform(seeds, keys, 0, digits[0].size, Purpose.PIXELS)
    expected = tiny_model.encode(digits, np.zeros((6, 3)), u_image)
    assert np.allclose(prior_eps, expected["prior_eps"], atol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_noise_of_an_encoding_draws_its_decoding(ask, digits, seed, n):
    images = np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), np.uint8)
    eps = ask("/v1/encode", images, "float32", output="prior_eps", seed=seed)
    decoded = ask("/v1/decode", ask("/v1/encode", images, "float32", seed=seed))
    assert near(ask("/v1/sample", eps), decoded)
    assert np.array_equal(ask("/v1/sample", eps, resample=""), ask("/v1/sample", eps))


@settings(max_examples=20)
@given(
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from(["1", "0.5,1.5"]),
    st.sampled_from(["mean", "draw"]),
)
def test_all_groups_drawn_anew_are_a_plain_sample(ask, prior_eps, seed, n, temperature, output):
    options = {"n": n, "seed": seed, "temperature": temperature, "output": output}
    plain = ask("/v1/sample", **options)
    for choice in ({"resample": "top,low"}, {"keep": ""}):
        assert np.array_equal(ask("/v1/sample", prior_eps[:n], **choice, **options), plain)


@pytest.mark.parametrize("kept", GROUPS)
def test_what_is_kept_stays_and_the_rest_is_the_seeds(two_groups, ask, prior_eps, tiny_model, kept):
    streams = np.arange(6, dtype=np.uint64)
    eps = normal(9, streams, 0, 3, Purpose.SAMPLE)
    columns = slice(0, 1) if kept == "top" else slice(1, 3)
    eps[:, columns] = prior_eps[:, columns]
    warmth = np.array([0.5, 1.5])[[0, 1, 1]]
    expected = tiny_model.sample(eps, warmth, np.zeros((6, 16)))["mean"]
    other = GROUPS[1 - GROUPS.index(kept)]
    for choice in ({"keep": kept}, {"resample": other}):
        images = ask("/v1/sample", prior_eps, seed=9, temperature="0.5,1.5", **choice)
        assert near(images, np.rint(255 * expected))


def test_variations_of_one_image(ask, prior_eps):
    many = ask("/v1/sample", prior_eps[:1], n=40, keep="top", seed=3)
    alone = ask("/v1/sample", np.repeat(prior_eps[:1], 40, axis=0), keep="top", seed=3)
    assert np.array_equal(many, alone)
    assert len(np.unique(many, axis=0)) > 30
    cold = ask("/v1/sample", prior_eps[:1], n=5, keep="top", temperature="1,0")
    assert len(np.unique(cold, axis=0)) == 1


def test_every_form_is_the_same(two_groups, ask, prior_eps):
    expected = ask("/v1/sample", prior_eps, keep="top", seed=1)
    file = base64.b64encode(encode_npy(prior_eps)).decode()
    for form in (prior_eps.tolist(), file, f"data:application/x-npy;base64,{file}"):
        body = {"prior_eps": form, "keep": ["top"], "seed": 1}
        answer = two_groups.post("/v1/sample", json=body, headers={"accept": NPY["accept"]})
        assert np.array_equal(
            decode_npy(answer.content, dtypes=("uint8",), max_items=999), expected
        )
    document = two_groups.post("/v1/sample", json=body).json()
    assert ImagesResponse.model_validate(document).resampled == ["low"]
    latents = base64.b64encode(encode_npy(np.zeros((1, 3), np.float32))).decode()
    assert two_groups.post("/v1/decode", json={"latents": latents}).status_code == 200


def test_without_noise_there_is_no_seed(two_groups, prior_eps):
    def document(**options):
        return two_groups.post(
            "/v1/sample", json={"prior_eps": prior_eps.tolist(), **options}
        ).json()

    assert document()["seed"] is None
    assert document()["resampled"] == []
    assert document(resample=["low"])["seed"] is not None
    assert document(output="draw")["seed"] is not None


BAD = {
    "unknown group": ({"resample": ["z9"]}, 422, "invalid-input", "there are top, low"),
    "unknown kept group": ({"keep": ["top", "z9"]}, 422, "invalid-input", "'z9'"),
    "both": ({"keep": [], "resample": []}, 422, "invalid-input", "not both"),
    "too many": ({"n": 5}, 422, "wrong-shape", "6 rows for 5 images"),
    "no list": ({"prior_eps": 3}, 422, "invalid-input", "list of lists"),
    "no base64": ({"prior_eps": "%%"}, 422, "invalid-input", "base64"),
    "no npy": ({"prior_eps": "AAAA"}, 400, "malformed-body", "npy"),
    "wrong width": ({"prior_eps": [[1, 2]]}, 422, "wrong-shape", "takes 3"),
    "no rows": ({"prior_eps": []}, 422, "invalid-input", "at least 1"),
    "temperatures": ({"temperature": [1]}, 422, "invalid-input", "latent group (top, low), not 1"),
    "nothing to keep of": ({"prior_eps": None, "keep": ["top"]}, 422, "invalid-input", "send it"),
    "too many rows": ({"prior_eps": [[0, 0, 0]] * 1025}, 413, "payload-too-large", "1024"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_edits_say_what_to_do(two_groups, problem, prior_eps, case):
    change, status, slug, words = BAD[case]
    body = {"prior_eps": prior_eps.tolist(), **change}
    assert words in problem(two_groups.post("/v1/sample", json=body), status, slug)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_noise_must_be_numbers(two_groups, problem, bad):
    body = encode_npy(np.full((1, 3), bad, np.float32))
    answer = two_groups.post("/v1/sample", content=body, headers=NPY)
    assert "prior_eps" in problem(answer, 422, "non-finite-input")


def test_lists_of_very_many_numbers_are_not_written(serve, problem, digits, monkeypatch):
    monkeypatch.setattr("service.api.request.inputs.MAX_JSON_NUMBERS", 35)
    client = serve()
    kind = {"content-type": NPY["content-type"]}
    refused = client.post("/v1/encode", content=encode_npy(digits), headers=kind)
    assert "application/x-npy" in problem(refused, 413, "payload-too-large")
    assert client.post("/v1/encode", content=encode_npy(digits), headers=NPY).status_code == 200


# ------------------------------------------------------------------ from one to another


@pytest.mark.parametrize("n", [2, 3, 9])
def test_a_way_between_seeds_has_their_own_samples_at_its_ends(ask, n):
    way = ask("/v1/interpolate", n=n, seeds="4,5")
    ends = [ask("/v1/sample", n=1, seed=seed)[0] for seed in (4, 5)]
    assert len(way) == n
    assert np.array_equal(way[[0, -1]], ends)


def test_a_way_between_images_has_their_reconstructions_at_its_ends(ask, digits):
    way = ask("/v1/interpolate", digits[:2], n=5)
    assert near(way[[0, -1]], ask("/v1/reconstruct", digits[:2]))
    drawn = ask("/v1/interpolate", digits[:2], n=5, seed=3)
    assert near(drawn[[0, -1]], ask("/v1/reconstruct", digits[:2], seed=3))


def test_a_way_from_an_image_to_a_seed(two_groups, ask, digits, problem):
    way = ask("/v1/interpolate", digits[:1], n=4, seeds="8")
    assert near(way[:1], ask("/v1/reconstruct", digits[:1]))
    assert np.array_equal(way[-1:], ask("/v1/sample", n=1, seed=8))
    answer = two_groups.post("/v1/interpolate", json={"n": 3, "seeds": [1, 2]})
    document = ImagesResponse.model_validate(answer.json())
    assert document.notes == []
    assert (
        "eps = 0"
        in two_groups.post(
            "/v1/interpolate?seeds=8",
            content=encode_npy(digits[:1]),
            headers={**NPY, "accept": "*/*"},
        ).json()["notes"][0]
    )


@pytest.mark.parametrize(
    ("seeds", "images"), [([], 0), ([1], 0), ([1, 2], 1), ([1], 2), ([], 1), ([], 3)]
)
def test_a_way_has_two_ends(two_groups, problem, digits, seeds, images):
    query = {"seeds": ",".join(map(str, seeds))} if seeds else {}
    body = encode_npy(digits[:images]) if images else b""
    headers = NPY if images else {"accept": NPY["accept"]}
    answer = two_groups.post("/v1/interpolate", params=query, content=body, headers=headers)
    detail = problem(answer, 422, "invalid-input")
    assert f"{images} images and {len(seeds)} seeds" in detail


def test_the_client_edits(two_groups, ask, digits, prior_eps):
    from service.client import Client

    client = Client(http=two_groups)
    assert np.array_equal(client.encode(digits, output="prior_eps").array, prior_eps)
    edited = client.sample(prior_eps=prior_eps, keep=["top"], seed=2)
    assert np.array_equal(edited.images, ask("/v1/sample", prior_eps, resample="low", seed=2))
    whole = client.sample(prior_eps=prior_eps, keep=[], seed=2)
    assert np.array_equal(whole.images, client.sample(6, seed=2).images)
    assert client.sample(prior_eps=prior_eps, resample=[]).seed is None
    assert np.array_equal(
        client.interpolate(seeds=(4, 5), n=3).images, ask("/v1/interpolate", n=3, seeds="4,5")
    )
