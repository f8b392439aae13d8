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

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

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
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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
    for value in values:
        if value != "*":
            ipaddress.ip_network(value, strict=False)
    return values


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


class Settings(BaseSettings):
    """Everything an operator can set. A field `x` is the environment variable ``IAFVAE_X``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")
    ] = 8000
    models: Annotated[Path, Field(description="a bundle, or a directory of bundles")] = (
        SHIPPED_MODELS
    )
    default_model: Annotated[
        str | None,
        Field(
            description="name, or name@version to pin it; absent: the only one, or the first; of "
            f"those that ship {SHIPPED_DEFAULT}"
        ),
    ] = None
    max_models: Annotated[Count, Field(description="loaded at once, all versions counted")] = 16
    watch_seconds: Annotated[
        Seconds, Field(description="look at the models this often and follow changes; 0: never")
    ] = 0.0
    provider: Annotated[
        Provider, Field(description="auto: CUDA where it works; cuda is a demand")
    ] = "auto"
    device: Annotated[int, Field(ge=0, description="which GPU, as CUDA counts them")] = 0
    gpu_bucket: Annotated[
        Count | None,
        Field(
            description="pad every batch of a GPU to so many rows: the same bytes whatever the "
            "batch; absent: to a few sizes"
        ),
    ] = None
    load_seconds: Annotated[
        Seconds, Field(gt=0, description="a bundle that takes longer to load is refused")
    ] = 600.0
    hang_seconds: Annotated[
        Seconds, Field(gt=0, description="a batch that takes longer fails liveness")
    ] = 120.0

    keys_file: Annotated[
        Path | None, Field(description="hashes of the keys of who may call; absent: everyone may")
    ] = None
    open_metrics: Annotated[bool, Field(description="/metrics needs no key")] = False
    cors_origins: Annotated[
        Origins, Field(description="web origins whose pages may call, with commas; * is all")
    ] = ()

    root_path: Annotated[
        str,
        AfterValidator(_root_path),
        Field(description="prefix of the path that callers see, behind a reverse proxy"),
    ] = ""
    forwarded_allow_ips: Annotated[
        Proxies,
        Field(description="addresses or networks of proxies whose X-Forwarded-* are believed"),
    ] = ()

    max_body_bytes: Annotated[
        Count, Field(description="of one request's body, before and after decompression")
    ] = 32 * 2**20
    max_buffered_bytes: Annotated[
        Count, Field(description="of all bodies that are held at once; above it: 429")
    ] = 512 * 2**20
    max_image_pixels: Annotated[Count, Field(description="of one encoded image")] = 33_554_432
    max_total_pixels: Annotated[Count, Field(description="of one request, before resizing")] = (
        67_108_864
    )
    max_images: Annotated[Count, Field(description="images or latents in one request")] = 1024
    max_n: Annotated[Count, Field(description="images drawn by one request")] = 1024
    max_stream_n: Annotated[
        Count, Field(description="images drawn by one request whose answer is streamed (npy)")
    ] = 1_000_000
    max_importance_samples: Annotated[Count, Field(description="the largest K")] = 1024
    max_rows: Annotated[Count, Field(description="images times importance samples")] = 16_384
    max_queue_rows: Annotated[Count, Field(description="rows that may wait; above it: 429")] = (
        32_768
    )
    max_in_flight: Annotated[
        Count,
        Field(description="requests to operations at once; above it: 429, with the body unread"),
    ] = 4096
    quota_rows_per_minute: Annotated[
        Count | None,
        Field(
            description="rows (an image has one for each importance sample, and one for its "
            "verdict) that the holder of a key, or an address without keys, may have in a minute; "
            "above it: 429; absent: no quota"
        ),
    ] = None
    max_batch_rows: Annotated[
        Count, Field(description="rows computed at once, if the engine takes so many")
    ] = 256

    body_timeout_seconds: Annotated[
        Seconds, Field(gt=0, description="a body that takes longer to come: 408")
    ] = 30.0
    timeout_seconds: Annotated[Seconds, Field(gt=0, description="deadline of a request")] = 60.0
    drain_delay_seconds: Annotated[
        Seconds, Field(description="after SIGTERM: /readyz says 503, requests are still served")
    ] = 0.0
    drain_seconds: Annotated[Seconds, Field(description="for what is in flight at the end")] = 20.0

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="debug, info, warning or error; logs go to standard error"),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="text for people, json for collectors")
    ] = "text"
    access_log: Annotated[bool, Field(description="a line for each request")] = False
    tracing: Annotated[
        bool, Field(description="spans by OTLP, as OTEL_* say; needs the extra otel")
    ] = False

    @property
    def engine(self) -> EngineOptions:
        """What computes, as far as it is the operator's choice."""
        return EngineOptions(provider=self.provider, device=self.device, gpu_bucket=self.gpu_bucket)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - `_Environment` replaces it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller gives, then the environment; no .env files."""
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _shipped(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Of the models that ship, the one that answers where a request names none."""
        if "models" in given:
            return given
        return {"default_model": SHIPPED_DEFAULT, **given}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_rows > self.max_queue_rows:
            raise ValueError(
                f"{PREFIX}MAX_ROWS ({self.max_rows}) is above {PREFIX}MAX_QUEUE_ROWS "
                f"({self.max_queue_rows}): such a request could never be queued; lower the first"
            )
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ValueError(
                f"{PREFIX}MAX_BODY_BYTES ({self.max_body_bytes}) is above "
                f"{PREFIX}MAX_BUFFERED_BYTES ({self.max_buffered_bytes}); lower the first"
            )
        if self.max_image_pixels > self.max_total_pixels:
            raise ValueError(
                f"{PREFIX}MAX_IMAGE_PIXELS ({self.max_image_pixels}) is above "
                f"{PREFIX}MAX_TOTAL_PIXELS ({self.max_total_pixels}); lower the first"
            )
        if self.max_n > self.max_stream_n:
            raise ValueError(
                f"{PREFIX}MAX_N ({self.max_n}) is above {PREFIX}MAX_STREAM_N "
                f"({self.max_stream_n}); lower the first"
            )
        if self.max_importance_samples > self.max_rows:
            raise ValueError(
                f"{PREFIX}MAX_IMPORTANCE_SAMPLES ({self.max_importance_samples}) is above "
                f"{PREFIX}MAX_ROWS ({self.max_rows}); lower the first"
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


class _Environment(PydanticBaseSettingsSource):
    """The variables with our prefix; unlike pydantic-settings' own source, refuses unknown ones."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """One field's text, as the base class asks for it."""
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, str]:
        """Texts by field name; empty ones count as absent."""
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
