"""JSON of requests: its values are counted before they are parsed, and base64 becomes bytes."""

from __future__ import annotations

import json
from typing import Any

from service.codecs import NPY
from service.codecs.images import decode_base64
from service.errors import InvalidInput, MalformedBody, PayloadTooLarge

__all__ = [
    "MAX_JSON_BYTES",
    "check_values",
    "json_fields",
    "json_images",
    "loads_once",
    "of_base64",
    "too_many",
]

# What is parsed holds the interpreter meanwhile. A value takes many times more memory, and time,
# than its few characters.
MAX_JSON_BYTES = 2**20  # but of images, which are parsed in another process
MAX_JSON_VALUES = 2**17
MAX_JSON_OPTIONS = 2**10  # values of one option
MAX_OPTION_BYTES = 2**14  # of all options beside images, as JSON
MAX_KEYS = 64  # of an object
MAX_COLONS = 2**13
# Of a number: a fraction that lies between two doubles takes a hundred times as long with more, and
# an integer the square of its digits.
MAX_NUMBER_CHARACTERS = 40
OF_NUMBERS = bytes.maketrans(b"123456789.eE+-", b"0" * 14)
LONG_NUMBER = b"0" * (MAX_NUMBER_CHARACTERS + 1)


def json_fields(body: bytes, payload: str, max_items: int) -> tuple[dict[str, Any], Any]:
    """The object in `body` without its field `payload`, and the value of that.

    Raises MalformedBody, InvalidInput, PayloadTooLarge.
    """
    size = len(body) if payload == "images" else MAX_JSON_BYTES
    check_values(body, f", or {payload} as {NPY}", max_bytes=size)
    if body.count(b":") > MAX_COLONS:  # of fields, and of data: URLs
        raise PayloadTooLarge("the JSON body has more fields than any request takes")
    fields = loads_once(body)
    if not isinstance(fields, dict):
        raise MalformedBody('the body must be a JSON object, such as {"n": 4}')
    value = fields.pop(payload, None)
    for name, option in fields.items():
        if isinstance(option, list | str) and len(option) > MAX_JSON_OPTIONS:
            unit = "characters" if isinstance(option, str) else "entries"
            raise InvalidInput(
                f"{name[:60]!r} has {len(option)} {unit}, {MAX_JSON_OPTIONS} are taken of an "
                f"option; {payload} are the field {payload!r}"
            )
        parts = option if isinstance(option, list) else (option,)
        if not {list, dict}.isdisjoint(map(type, parts)):  # however deep: nothing follows it
            raise InvalidInput(f"{name[:60]!r} must be one value, or a list of such")
    if isinstance(value, list) and len(value) > max_items:
        raise PayloadTooLarge(too_many(len(value), max_items, payload))
    return fields, value


def too_many(count: int, max_items: int, what: str) -> str:
    """The detail of a refusal."""
    return f"{count} {what} in one request, at most {max_items} are taken: send several requests"


def json_images(body: bytes, max_items: int) -> tuple[dict[str, Any], list[bytes]]:
    """As `json_fields` of "images", whose base64 is decoded. Raises also UndecodableImage."""
    fields, value = json_fields(body, "images", max_items)
    if len(json.dumps(fields)) > MAX_OPTION_BYTES:
        raise InvalidInput(f"the options beside the images take more than {MAX_OPTION_BYTES} bytes")
    return fields, of_base64(value)


def of_base64(images: object) -> list[bytes]:
    """The files in a list of base64. Raises InvalidInput, UndecodableImage."""
    if not isinstance(images, list) or not images or not all(isinstance(x, str) for x in images):
        raise InvalidInput("images must be a list of at least one base64 string (PNG, JPEG, WebP)")
    return [decode_base64(text, f"image {i}") for i, text in enumerate(images)]


def check_values(text: bytes, other: str = "", *, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Raises PayloadTooLarge where the JSON in `text` is too much to be parsed.

    other: says in what other form it may be sent.
    """
    if len(text) > max_bytes:
        raise PayloadTooLarge(
            f"the JSON has {len(text)} bytes, {max_bytes} are taken: send less{other}"
        )
    if (values := sum(map(text.count, (b",", b"[", b"{")))) > MAX_JSON_VALUES:
        raise PayloadTooLarge(
            f"the JSON body has some {values} values, {MAX_JSON_VALUES} are taken: send "
            f"fewer{other}"
        )


def loads_once(text: bytes) -> Any:
    """`text` as JSON whose objects hold no key twice. Raises MalformedBody, InvalidInput."""
    try:
        # Only where one may be long: a call for each number would take a third more time. In
        # UTF-16 and UTF-32 zeros stand between the characters.
        is_long = LONG_NUMBER in text.translate(OF_NUMBERS, b"\0")
        decimal, integer = (_float, _int) if is_long else (None, None)
        return json.loads(text, object_pairs_hook=_once, parse_float=decimal, parse_int=integer)
    except RecursionError:
        raise MalformedBody("the JSON body is nested too deep: no request here is") from None
    except ValueError as error:
        # Of a number that is too long Python says how its own limit is lifted.
        why = str(error).partition(";")[0]
        raise MalformedBody(f"the body is not JSON ({why})") from None


def _float(text: str) -> float:
    return float(_short(text))


def _int(text: str) -> int:
    return int(_short(text))


def _short(number: str) -> str:
    if len(number) > MAX_NUMBER_CHARACTERS:
        raise InvalidInput(
            f"a number has {len(number)} characters, {MAX_NUMBER_CHARACTERS} are taken: round it"
        )
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without a key that is there twice: which of the two is meant, nobody knows."""
    if len(pairs) > MAX_KEYS:
        raise InvalidInput(f"a JSON object here has at most {MAX_KEYS} fields, not {len(pairs)}")
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidInput(f"{name[:60]!r} is given more than once: give it once")
        fields[name] = value
    return fields
