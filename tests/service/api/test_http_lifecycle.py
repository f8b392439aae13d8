"""A real process: it starts or says why not, notices who hangs up, drains and exits with 0."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from service.codecs.npy import encode_npy

NPY = {"content-type": "application/x-npy"}


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def metric(url, start):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def test_it_serves(running):
    assert httpx.get(f"{running.url}/readyz").status_code == 200
    assert httpx.post(f"{running.url}/v1/sample?n=3").json()["shape"] == [3, 1, 4, 4]


def long_request(port: int, seconds_header: str = "") -> socket.socket:
    """Send a request of 1024 images times 16 samples, and leave its answer unread."""
    body = encode_npy(np.random.default_rng(0).integers(0, 256, (1024, 4, 4), np.uint8))
    head = (
        "POST /v1/score?importance_samples=16 HTTP/1.1\r\nhost: t\r\n"
        f"content-type: application/x-npy\r\n{seconds_header}content-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + body)
    return connection


def test_rows_of_a_client_that_hangs_up_are_dropped(start_server):
    # One row a batch: the request takes long enough to be left.
    running = start_server(IAFVAE_MAX_BATCH_ROWS="1")
    gone = 'iafvae_requests_total{model="tiny",operation="score",outcome="client-gone"}'
    connection = long_request(running.port)
    wait_until(lambda: metric(running.url, "iafvae_queue_rows") > 0)
    connection.close()
    wait_until(lambda: metric(running.url, gone) == 1)
    dropped = 'iafvae_dropped_rows_total{model="tiny",operation="evidence",reason="cancelled"}'
    assert metric(running.url, dropped) > 100
    assert metric(running.url, "iafvae_queue_rows") == 0
    assert httpx.post(f"{running.url}/v1/sample").status_code == 200


def test_a_deadline_drops_what_is_left(start_server):
    running = start_server(IAFVAE_MAX_BATCH_ROWS="1")
    body = encode_npy(np.zeros((1024, 4, 4), np.uint8))
    answer = httpx.post(
        f"{running.url}/v1/score?importance_samples=16",
        content=body,
        headers={**NPY, "x-iafvae-timeout-seconds": "0.05"},
    )
    assert answer.status_code == 504
    assert answer.json()["type"].endswith("deadline-exceeded")
    dropped = 'iafvae_dropped_rows_total{model="tiny",operation="evidence",reason="expired"}'
    assert metric(running.url, dropped) > 100


def test_a_full_queue_refuses_with_a_time_to_come_back(start_server):
    running = start_server(
        IAFVAE_MAX_BATCH_ROWS="1", IAFVAE_MAX_QUEUE_ROWS="16384", IAFVAE_MAX_ROWS="16384"
    )
    first = long_request(running.port)
    wait_until(lambda: metric(running.url, "iafvae_queue_rows") > 1000)
    body = encode_npy(np.zeros((1024, 4, 4), np.uint8))
    answer = httpx.post(f"{running.url}/v1/score?importance_samples=16", content=body, headers=NPY)
    first.close()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


def test_sigterm_drains_and_exits_with_zero(start_server):
    running = start_server(IAFVAE_DRAIN_DELAY_SECONDS="1.0")
    with httpx.Client(base_url=running.url) as client:
        assert client.get("/readyz").status_code == 200
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert client.post("/v1/sample").status_code == 200, "still served during the delay"
    assert running.process.wait(15) == 0


def test_sigterm_lets_what_is_in_flight_finish(start_server):
    running = start_server(IAFVAE_MAX_BATCH_ROWS="4")
    answers = []
    body = encode_npy(np.zeros((1024, 4, 4), np.uint8))

    def ask():
        url = f"{running.url}/v1/score?importance_samples=4"
        answers.append(httpx.post(url, content=body, headers=NPY, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: metric(running.url, "iafvae_queue_rows") > 0)
    running.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == 1024
    assert running.process.wait(15) == 0


@pytest.mark.parametrize("sent", ["whole", "half"])
def test_what_is_not_done_when_the_drain_ends_is_told_so(start_server, sent):
    """Computing, or still on its way: the answer is the documented one, and the end in order."""
    running = start_server(IAFVAE_MAX_BATCH_ROWS="1", IAFVAE_DRAIN_SECONDS="1")
    if sent == "whole":
        # Together more than a second's work.
        connection, other = long_request(running.port), long_request(running.port)
        wait_until(lambda: metric(running.url, "iafvae_queue_rows") > 0)
    else:
        connection, other = (socket.create_connection(("127.0.0.1", running.port)) for _ in "12")
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\n{")
        time.sleep(0.2)
    with connection, other:
        running.process.send_signal(signal.SIGTERM)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    if sent == "half" or not answer.startswith(b"HTTP/1.1 200 "):  # a quick machine is done
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"urn:iafvae:problem:shutting-down" in answer
    assert running.process.wait(15) == 0


def test_ctrl_c_does_not_wait(start_server):
    running = start_server(IAFVAE_DRAIN_DELAY_SECONDS="30")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(10) == 0


@pytest.mark.parametrize("file", ["manifest.json", "weights.bin", "score.onnx", "calibration.npz"])
def test_a_corrupt_bundle_is_refused_by_name(tiny_bundle, tmp_path, refused, file):
    bundle = tmp_path / "broken"
    shutil.copytree(tiny_bundle, bundle)
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (bundle / file).write_bytes(data)
    message = refused(IAFVAE_MODELS=str(bundle))
    assert "broken" in message
    assert file in message


def test_a_truncated_and_a_missing_bundle_are_refused(tiny_bundle, tmp_path, refused):
    bundle = tmp_path / "short"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "weights.bin").write_bytes((bundle / "weights.bin").read_bytes()[:-1])
    assert "weights.bin" in refused(IAFVAE_MODELS=str(bundle))
    assert "no bundle at" in refused(IAFVAE_MODELS=str(tmp_path / "nowhere"))
    assert "holds none" in refused(IAFVAE_MODELS=str(tmp_path.parent))


def test_two_bundles_of_one_name_are_refused(tiny_bundle, tmp_path, refused):
    shutil.copytree(tiny_bundle, tmp_path / "a")
    shutil.copytree(tiny_bundle, tmp_path / "b")
    assert "both named 'tiny'" in refused(IAFVAE_MODELS=str(tmp_path))


def test_bundles_that_are_being_written_are_no_models(tiny_bundle, tmp_path, start_server):
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    shutil.copytree(tiny_bundle, tmp_path / ".tiny.x7q")  # as a writer that died leaves it
    running = start_server(IAFVAE_MODELS=str(tmp_path))
    models = httpx.get(f"{running.url}/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["tiny"]


def test_an_unknown_default_model_is_refused(tiny_bundle, refused):
    assert "IAFVAE_DEFAULT_MODEL" in refused(
        IAFVAE_MODELS=str(tiny_bundle), IAFVAE_DEFAULT_MODEL="other"
    )


def test_a_port_in_use_is_said(tiny_bundle, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(IAFVAE_MODELS=str(tiny_bundle), IAFVAE_PORT=str(port))
    assert f"127.0.0.1:{port} is in use" in message


def test_a_demand_for_cuda_is_not_silently_ignored(tiny_bundle, refused):
    import onnxruntime

    if shutil.which("nvidia-smi"):
        pytest.skip(f"this machine has a GPU (onnxruntime {onnxruntime.__version__})")
    assert "'.[cuda]'" in refused(IAFVAE_MODELS=str(tiny_bundle), IAFVAE_PROVIDER="cuda")


def test_misspelt_settings_are_refused(refused):
    assert "did you mean IAFVAE_PORT" in refused(IAFVAE_PROT="1")
