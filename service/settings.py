"""Settings of the service: ``IAFVAE_*`` environment variables, built inside `create_app`.

A misspelt variable is an error that names it, not a default that is silently kept.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from service.engine.options import EngineOptions, Provider

__all__ = [
    "PATH_PREFIX",
    "PREFIX",
    "SHIPPED_BUNDLE",
    "SHIPPED_MODELS",
    "Settings",
    "SettingsError",
    "StartError",
    "load_settings",
]

PREFIX = "IAFVAE_"
SHIPPED_MODELS = Path(__file__).resolve().parent / "bundles"
SHIPPED_DEFAULT = "mnist"
SHIPPED_BUNDLE = SHIPPED_MODELS / SHIPPED_DEFAULT
OTHER_PROGRAMS = {"IAFVAE_DATA_DIR", "IAFVAE_KEY"}  # of training, and of the client
# Kubernetes and Docker links describe Services named "iafvae" or "iafvae-..." in variables of our
# prefix: IAFVAE_CPU_SERVICE_HOST, IAFVAE_PORT_8000_TCP_ADDR; IAFVAE_CPU_PORT is tcp://10.0.0.9:8000,
# and of Docker alone IAFVAE_NAME is /web/iafvae, and IAFVAE_ENV_PATH what PATH is there.
LINKED = re.compile(
    r"IAFVAE_(\w+_)?"
    r"(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|ENV_\w+)"
)
LINKED_PORT = re.compile(r"IAFVAE_(\w+_)?(PORT|NAME)")
LINK = re.compile(r"(tcp|udp|sctp)://\S+|/\S+/\S+")
PATH_PREFIX = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+/?"

Count = Annotated[int, Field(ge=1)]
YEAR = 365 * 24 * 3600.0  # seconds: above it clocks and timers overflow
Seconds = Annotated[float, Field(ge=0, le=YEAR, allow_inf_nan=False)]
# Limits of which the first cannot be above the second: nothing would ever reach it.
NESTED = (
    ("max_rows", "max_queue_rows"),
    ("max_body_bytes", "max_buffered_bytes"),
    ("max_image_pixels", "max_total_pixels"),
    ("max_n", "max_stream_n"),
    ("max_importance_samples", "max_rows"),
    ("gpu_bucket", "max_batch_rows"),
)
ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.:\[\]_-]+")


def _split(value: object) -> object:
    """A list in a variable has commas between its members."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not ORIGIN.fullmatch(value):
            raise ValueError(f"{value!r} is no origin such as https://example.org (no path), or *")
    return values


def _proxies(values: tuple[str, ...]) -> tuple[str, ...]:
    """Networks by their own address: uvicorn would look for 10.0.0.5/24 by these letters."""
    return tuple(
        str(ipaddress.ip_network(value, strict=False)) if "/" in value else _address(value)
        for value in values
    )


def _address(value: str) -> str:
    return value if value == "*" else str(ipaddress.ip_address(value))


def _root_path(value: str) -> str:
    if value and not re.fullmatch(PATH_PREFIX, value):
        raise ValueError("must be a path such as /iafvae, of letters, digits and . _ ~ -")
    return value.rstrip("/")


Origins = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_origins)]
Proxies = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_proxies)]


class SettingsError(ValueError):
    """A setting is unknown, out of range or contradicts another; the message names the variable."""


class StartError(Exception):
    """The server cannot start; the message is one line and says what to do."""


class Settings(BaseModel):
    """Everything an operator can set. A field `x` is the environment variable ``IAFVAE_X``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """address to listen on"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """port to listen on; 0 takes a free one"""
    models: Path = SHIPPED_MODELS
    """a bundle, or a directory of bundles"""
    default_model: str | None = None
    """name, or name@version to pin it; absent: the only one, or the first; of those that ship
    mnist"""
    max_models: Count = 16
    """loaded at once, all versions counted"""
    watch_seconds: Seconds = 0.0
    """look at the models this often and follow changes; 0: never"""
    provider: Provider = "auto"
    """auto: CUDA where it works; cuda is a demand"""
    device: Annotated[int, Field(ge=0)] = 0
    """which GPU, as CUDA counts them"""
    gpu_bucket: Count | None = None
    """pad every batch of a GPU to so many rows: the same bytes whatever the batch; absent: to a few
    sizes"""
    load_seconds: Annotated[Seconds, Field(gt=0)] = 600.0
    """a bundle that takes longer to load is refused"""
    hang_seconds: Annotated[Seconds, Field(gt=0)] = 120.0
    """a batch that takes longer fails liveness"""

    keys_file: Path | None = None
    """hashes of the keys of who may call; absent: everyone may"""
    open_metrics: bool = False
    """/metrics needs no key"""
    cors_origins: Origins = ()
    """web origins whose pages may call, with commas; * is all"""

    root_path: Annotated[str, AfterValidator(_root_path)] = ""
    """prefix of the path that callers see, behind a reverse proxy"""
    forwarded_allow_ips: Proxies = ()
    """addresses or networks of proxies whose X-Forwarded-* are believed"""

    max_body_bytes: Count = 32 * 2**20
    """of one request's body, before and after decompression"""
    max_buffered_bytes: Count = 512 * 2**20
    """of all bodies, and answers that wait for their clients, held at once; above it: 429"""
    max_image_pixels: Count = 33_554_432
    """of one encoded image"""
    max_total_pixels: Count = 67_108_864
    """of one request, before resizing"""
    max_images: Count = 1024
    """images or latents in one request"""
    max_n: Count = 1024
    """images drawn by one request"""
    max_stream_n: Count = 1_000_000
    """images drawn by one request whose answer is streamed (npy)"""
    max_importance_samples: Count = 1024
    """the largest K"""
    max_rows: Count = 16_384
    """images times importance samples"""
    max_queue_rows: Count = 32_768
    """rows that may wait; above it: 429"""
    max_in_flight: Count = 4096
    """requests to operations at once; above it: 429, with the body unread"""
    quota_rows_per_minute: Count | None = None
    """rows (of a scored image one for each importance sample, of any other one for each operation)
    that the holder of a key, or an address without keys, may have in a minute; above it: 429;
    absent: no quota"""
    max_batch_rows: Count = 256
    """rows computed at once, if the engine takes so many"""

    body_timeout_seconds: Annotated[Seconds, Field(gt=0)] = 30.0
    """a body that takes longer to come: 408"""
    timeout_seconds: Annotated[Seconds, Field(gt=0)] = 60.0
    """deadline of a request"""
    drain_delay_seconds: Seconds = 0.0
    """after SIGTERM: /readyz says 503, requests are still served"""
    drain_seconds: Seconds = 20.0
    """for what is in flight at the end"""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error; logs go to standard error"""
    log_format: Literal["text", "json"] = "text"
    """text for people, json for collectors"""
    access_log: bool = False
    """a line for each request"""
    tracing: bool = False
    """spans by OTLP, as OTEL_* say; needs the extra otel"""

    @property
    def engine(self) -> EngineOptions:
        """What computes, as far as it is the operator's choice."""
        return EngineOptions(
            provider=self.provider,
            device=self.device,
            gpu_rows=self.max_batch_rows,
            gpu_bucket=self.gpu_bucket,
        )

    @model_validator(mode="before")
    @classmethod
    def _with_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What the caller gives, then the environment; of the models that ship, the one that
        answers where a request names none."""
        given = {**_environment(), **given}
        return given if "models" in given else {"default_model": SHIPPED_DEFAULT, **given}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for small, large in NESTED:
            if (value := getattr(self, small) or 0) > (most := getattr(self, large)):
                raise ValueError(
                    f"{PREFIX}{small.upper()} ({value}) is above {PREFIX}{large.upper()} ({most}); "
                    "lower the first"
                )
        return self


def load_settings(**given: Any) -> Settings:
    """Settings from the environment, with what is `given` (and not None) before it.

    Raises:
        SettingsError: one line for each bad value, naming its variable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_line(item) for item in error.errors())) from None


def _environment() -> dict[str, str]:
    """Texts of the variables with our prefix, by field; empty ones count as absent."""
    given = {
        variable: text
        for variable, text in os.environ.items()
        if variable.upper().startswith(PREFIX) and not _of_others(variable, text)
    }
    names = {variable: variable[len(PREFIX) :].lower() for variable in given}
    unknown = [v for v, n in names.items() if n not in Settings.model_fields or v != v.upper()]
    if unknown:
        raise SettingsError("\n".join(_unknown(v, names[v]) for v in sorted(unknown)))
    return {names[variable]: text for variable, text in given.items() if text}


def _of_others(variable: str, text: str) -> bool:
    if LINK.fullmatch(text) and LINKED_PORT.fullmatch(variable):
        return True
    return variable in OTHER_PROGRAMS or LINKED.fullmatch(variable) is not None


def _unknown(variable: str, name: str) -> str:
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "unset it"
    return f"{variable}: there is no such setting; {hint}"


def _line(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return str(message)
    return f"{PREFIX}{str(item['loc'][0]).upper()}={item['input']!r}: {message}"
