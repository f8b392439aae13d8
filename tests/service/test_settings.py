"""Settings: what is wrong is named, and what Kubernetes adds is not ours."""

from __future__ import annotations

import pytest

from service.settings import SHIPPED_MODELS, Settings, SettingsError, load_settings


def test_defaults(monkeypatch):
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.models, settings.default_model) == (SHIPPED_MODELS, "mnist")
    assert (settings.models / "mnist" / "manifest.json").is_file()


def test_models_of_ones_own_have_no_default_that_ships(monkeypatch, tmp_path):
    assert load_settings(models=tmp_path).default_model is None
    assert load_settings(default_model="cifar10").default_model == "cifar10"
    monkeypatch.setenv("IAFVAE_MODELS", str(tmp_path))
    assert load_settings().default_model is None


def test_variables_then_arguments(monkeypatch):
    monkeypatch.setenv("IAFVAE_PORT", "9001")
    monkeypatch.setenv("IAFVAE_LOG_FORMAT", "json")
    settings = load_settings(port=9002, host=None)
    assert (settings.port, settings.log_format, settings.host) == (9002, "json", "127.0.0.1")


def test_empty_is_absent(monkeypatch):
    monkeypatch.setenv("IAFVAE_PORT", "")
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("IAFVAE_PROT", "1", "did you mean IAFVAE_PORT"),
        ("iafvae_port", "1", "iafvae_port: there is no such setting; did you mean IAFVAE_PORT"),
        ("IAFVAE_Log_Level", "info", "did you mean IAFVAE_LOG_LEVEL"),
        ("IAFVAE_XYZZY", "1", "IAFVAE_XYZZY: there is no such setting"),
        ("IAFVAE_PORT", "http", "IAFVAE_PORT='http'"),
        ("IAFVAE_PORT", "70000", "IAFVAE_PORT"),
        ("IAFVAE_PROVIDER", "tpu", "IAFVAE_PROVIDER"),
        ("IAFVAE_MAX_N", "0", "IAFVAE_MAX_N"),
        ("IAFVAE_TIMEOUT_SECONDS", "nan", "IAFVAE_TIMEOUT_SECONDS"),
        ("IAFVAE_LOAD_SECONDS", "1e10", "IAFVAE_LOAD_SECONDS='1e10'.*equal to 31536000"),
        ("IAFVAE_DRAIN_DELAY_SECONDS", "1e300", "IAFVAE_DRAIN_DELAY_SECONDS"),
        ("IAFVAE_WATCH_SECONDS", "-1", "IAFVAE_WATCH_SECONDS"),
        ("IAFVAE_MAX_MODELS", "0", "IAFVAE_MAX_MODELS"),
        ("IAFVAE_MAX_ROWS", "1000000", "above IAFVAE_MAX_QUEUE_ROWS"),
        ("IAFVAE_MAX_BUFFERED_BYTES", "5", "above IAFVAE_MAX_BUFFERED_BYTES"),
        ("IAFVAE_MAX_TOTAL_PIXELS", "5", "above IAFVAE_MAX_TOTAL_PIXELS"),
        ("IAFVAE_MAX_IMPORTANCE_SAMPLES", "20000", "above IAFVAE_MAX_ROWS"),
        ("IAFVAE_GPU_BUCKET", "512", "above IAFVAE_MAX_BATCH_ROWS"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_every_bad_value_has_a_line(monkeypatch):
    monkeypatch.setenv("IAFVAE_PORT", "x")
    monkeypatch.setenv("IAFVAE_MAX_N", "y")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert len(str(caught.value).splitlines()) == 2


LINKS = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
    "PORT_53_UDP": "udp://[fd00::1]:53",
    "NAME": "/web/iafvae",  # of Docker's links
    "ENV_PATH": "/usr/bin:/bin",
}


@pytest.mark.parametrize("service", ["", "CPU_", "CANARY_", "MNIST_HEADLESS_", "PORT_", "HTTP_"])
def test_variables_of_kubernetes_services_named_iafvae(monkeypatch, service):
    for name, value in LINKS.items():
        monkeypatch.setenv(f"IAFVAE_{service}{name}", value)
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CPU_PORT", "8000"),
        ("NAME", "digits"),
        ("PORTS", "tcp://1.2.3.4:5"),
        ("CPU_SERVICE_HOSTS", "x"),
        ("HOSTT", "a"),
    ],
)
def test_what_only_looks_like_one_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"IAFVAE_{name}", value)
    with pytest.raises(SettingsError, match=f"IAFVAE_{name}: there is no such setting"):
        load_settings()


@pytest.mark.parametrize("path", ["iafvae", "//x", "/a b", "/a/../b", "https://x/y", "/a?b"])
def test_a_prefix_is_a_path(monkeypatch, path):
    monkeypatch.setenv("IAFVAE_ROOT_PATH", path)
    with pytest.raises(SettingsError, match="IAFVAE_ROOT_PATH"):
        load_settings()


def test_a_prefix_and_its_proxies(monkeypatch):
    monkeypatch.setenv("IAFVAE_ROOT_PATH", "/models/iafvae/")
    monkeypatch.setenv("IAFVAE_FORWARDED_ALLOW_IPS", "10.0.0.0/8, ::1")
    settings = load_settings()
    assert settings.root_path == "/models/iafvae"
    assert settings.forwarded_allow_ips == ("10.0.0.0/8", "::1")
    monkeypatch.setenv("IAFVAE_FORWARDED_ALLOW_IPS", "10.0.0.5/24,fd00::7/8,*")
    assert load_settings().forwarded_allow_ips == ("10.0.0.0/24", "fd00::/8", "*")
    monkeypatch.setenv("IAFVAE_FORWARDED_ALLOW_IPS", "nginx")
    with pytest.raises(SettingsError, match="IAFVAE_FORWARDED_ALLOW_IPS"):
        load_settings()


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
