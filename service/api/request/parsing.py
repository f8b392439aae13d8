"""What came in: a request's body, split into options and payload.

What can be counted is, before it is parsed: JSON values, form fields, images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from service.api.request.forms import Part, parse_form
from service.api.request.limits import OperationRequest
from service.api.request.schemas import Options, OptionsT, parse_options
from service.codecs import IMAGE_ALIASES, IMAGE_TYPES, JSON, NPY
from service.codecs.json_body import json_fields, too_many
from service.errors import InvalidInput, MalformedBody, PayloadTooLarge, UnsupportedMedia

__all__ = ["Files", "Payload", "parse_body", "query_options"]

MAX_REMEMBERED = 256  # bytes of a query
MAX_TYPE_BYTES = 2**10  # of a Content-Type
MAX_FIELDS = 32
MAX_FIELD_BYTES = 2**12
INLINE_JSON = 2**17  # bytes with images: more than this is parsed beside the event loop
AMPERSANDS = re.compile("&+")
SEVERAL = ("temperature", "resample", "keep", "seeds", "altered")  # times in a query, or commas


@dataclass(frozen=True)
class Files:
    """Image files, and what to call them in errors."""

    contents: Sequence[bytes | memoryview]
    names: list[str] | None = None


# What a request brings beside its options: an npy file, image files, the value of a JSON field.
Payload = bytes | Files | Any | None


async def parse_body(
    request: OperationRequest,
    kind: type[OptionsT],
    body: bytes,
    *,
    payload: str,
    optional: bool,
) -> tuple[OptionsT, Payload]:
    """The options and the payload in the query and `body`, by the content type.

    payload: its field, "images", "latents" or "prior_eps"; optional: it may be left out.

    Raises:
        UnsupportedMedia: a content type that does not carry such a payload.
        MalformedBody: not what its content type says.
        InvalidInput: an option is unknown, bad, given twice or in the wrong place.
        PayloadTooLarge: more than `max_images` of the settings; none has been decoded.
    """
    headers, query = request.headers, request.scope["query_string"]
    max_items = request.settings.max_images
    given_type = headers.get("content-type", "")
    if len(given_type) > MAX_TYPE_BYTES:
        raise InvalidInput(f"a Content-Type has at most {MAX_TYPE_BYTES} bytes")
    media_type = given_type.partition(";")[0].strip().lower()
    if not body and optional:  # whatever its type is called
        return _of_query(kind, query), None
    if media_type == JSON:
        if options := query_options(query):
            raise InvalidInput(
                f"with a JSON body options are its fields: move {', '.join(options)} from the "
                "query into the body"
            )
        value: Payload
        if payload == "images" and len(body) > INLINE_JSON:
            fields, contents = await request.shared.decoders.parse_json(
                body, max_items, deadline=request.deadline, caller=request.holder
            )
            value = Files(contents)
        else:
            fields, value = json_fields(body, payload, max_items)
        return parse_options(kind, fields, text=False), value
    if media_type == NPY:
        return _of_query(kind, query), body
    if media_type == "multipart/form-data" and payload == "images":
        given, files = await _parse_form(headers, body, max_items)
        if not given:
            return _of_query(kind, query), files
        return parse_options(kind, _unique(given, query_options(query)), text=True), files
    if payload == "images" and (media_type in IMAGE_TYPES or media_type in IMAGE_ALIASES):
        return _of_query(kind, query), Files([body])
    raise UnsupportedMedia(_unsupported(media_type, payload, optional))


def _of_query(kind: type[OptionsT], query: bytes) -> OptionsT:
    """The options in a query; those of short ones are remembered, for callers repeat them."""
    if len(query) > MAX_REMEMBERED:
        return parse_options(kind, query_options(query), text=True)
    options = _remembered(kind, query)
    assert isinstance(options, kind)  # noqa: S101 - lru_cache has forgotten the type
    return options


@lru_cache(maxsize=512)
def _remembered(kind: type[Options], query: bytes) -> Options:
    return parse_options(kind, query_options(query), text=True)


def _unsupported(kind: str, payload: str, optional: bool) -> str:
    taken = f"{NPY} or {JSON}"
    if payload == "images":
        taken = f"{NPY}, multipart/form-data (files), {JSON}, {', '.join(IMAGE_TYPES)}"
    if optional:
        taken += ", or no body and query parameters"
    what = f"content type {kind[:80]!r} is" if kind else "a body without Content-Type is"
    return f"{what} not taken here; send {taken}"


def query_options(query: bytes) -> dict[str, Any]:
    """The options in a query, as text. Raises InvalidInput."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            AMPERSANDS.sub("&", query.decode("ascii")).strip("&"),
            keep_blank_values=True,
            strict_parsing=True,
            max_num_fields=MAX_FIELDS,
            errors="strict",
        )
    except ValueError as error:
        raise InvalidInput(f"the query cannot be parsed ({error})") from None
    return _unique(pairs, {})


def _unique(pairs: list[tuple[str, str]], before: dict[str, Any]) -> dict[str, Any]:
    """`before` and `pairs` as a dictionary; only what is in `SEVERAL` may be there repeatedly."""
    options = dict(before)
    for name, value in pairs:
        if name not in options:
            options[name] = value
        elif name in SEVERAL or name.endswith("[]"):  # axios' lists: an unknown field, told later
            options[name] = f"{options[name]},{value}"
        else:
            raise InvalidInput(f"{name[:60]!r} is given more than once: give it once")
    return options


async def _parse_form(
    headers: Headers, body: bytes, max_items: int
) -> tuple[list[tuple[str, str]], Files]:
    _, parameters = parse_options_header(headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise UnsupportedMedia("the names and fields of a form are taken as UTF-8 alone")
    if not parameters.get(b"boundary"):
        raise MalformedBody(
            "multipart/form-data needs its boundary in the Content-Type: let the HTTP library set "
            "this header"
        )
    fields: list[tuple[str, str]] = []
    files: list[memoryview] = []
    names: list[str] = []
    for part in await parse_form(body, parameters[b"boundary"], max_items + MAX_FIELDS):
        if part.filename is None:
            fields.append((part.name, _text(part)))
        elif part.name == "files":
            names.append(f"file {(part.filename or str(len(files)))[:80]!r}")
            files.append(part.content)
        else:
            raise InvalidInput(f"files belong in the field 'files', not in {part.name[:60]!r}")
    if len(fields) > MAX_FIELDS:
        raise MalformedBody(f"the form has more than {MAX_FIELDS} fields that are no files")
    if len(files) > max_items:
        raise PayloadTooLarge(too_many(len(files), max_items, "images"))
    if not files:
        raise InvalidInput(
            "there are no images in the request: send at least one file part, named 'files' and "
            "with a filename"
        )
    return fields, Files(files, names)


def _text(part: Part) -> str:
    if len(part.content) > MAX_FIELD_BYTES:
        raise MalformedBody(
            f"the form field {part.name[:60]!r} has more than {MAX_FIELD_BYTES} bytes: an image "
            "needs a filename"
        )
    return str(part.content, "utf-8", "replace")
