"""Requests and responses of the Open Inference Protocol's ``infer``: bytes to arrays and back.

A body is JSON, or JSON followed by the bytes of tensors; the length of the JSON is then stated
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.v2.tensors import TensorInfo, from_binary, from_json, shown, to_binary, to_json
from service.codecs.json_body import check_values, loads_once
from service.codecs.json_numbers import ENCODER
from service.errors import InvalidInput, MalformedBody
from service.operations.results import Result

__all__ = ["InferRequest", "InferResponse", "encode_response", "parse_request"]

Json = Any
Wanted = tuple[TensorInfo, bool]  # an output that is asked for, and whether as bytes
# What other servers and clients of the protocol may add, which means nothing here.
IGNORED = frozenset(
    {
        "binary_data_output",
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "content_type",
        "headers",
    }
)


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A parsed request; `inputs` are of the right datatypes and shapes."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: list[Wanted]
    parameters: Mapping[str, Json] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class InferResponse:
    """What a model answers: outputs by name, the result that they are of, which of its rows are
    numbers (`finite` ``[n]``), and parameters that say how they came about.
    """

    outputs: Mapping[str, NDArray[Any]]
    result: Result
    finite: NDArray[np.bool_]
    parameters: Mapping[str, Json] = field(default_factory=dict)


def parse_request(
    body: bytes,
    header_length: int | None,
    *,
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    parameters: frozenset[str],
) -> InferRequest:
    """The request in `body`, whose first `header_length` bytes (None: all) are JSON.

    inputs, outputs, parameters: what the model takes and gives.

    Raises:
        MalformedBody: not JSON, or bytes too few or too many.
        InvalidInput, WrongShape, WrongDtype: naming the tensor or parameter at fault.
        PayloadTooLarge: more JSON values than are parsed.
    """
    fields, rest = _split(body, header_length)
    given = _parameters(fields, "parameters")
    for name in given:
        if name not in parameters and name not in IGNORED:
            known = ", ".join(sorted(parameters)) or "none"
            raise InvalidInput(f"there is no parameter {name[:60]!r} here; known are: {known}")
    request_id = fields.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInput("id must be a string")
    arrays = _read_inputs(fields.get("inputs"), rest, inputs)
    wanted = _wanted(fields.get("outputs"), outputs, _flag(given, "binary_data_output", False))
    return InferRequest(inputs=arrays, outputs=wanted, parameters=given, id=request_id)


def _split(body: bytes, header_length: int | None) -> tuple[dict[str, Json], memoryview]:
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise MalformedBody(
            f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes"
        )
    text = body if length == len(body) else body[:length]
    check_values(text, ", or tensors as binary data")
    return _object(loads_once(text), "the body"), memoryview(body)[length:]


def _object(value: Json, what: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object")
    return value


def _listed(value: Json, what: str) -> list[dict[str, Json]]:
    if not isinstance(value, list):
        raise InvalidInput(f"{what} must be a list of objects, each with a name")
    return [_object(item, f"each of {what}") for item in value]


def _by_name(name: Json, infos: tuple[TensorInfo, ...], what: str) -> TensorInfo:
    for info in infos:
        if info.name == name:
            return info
    known = ", ".join(info.name for info in infos)
    raise InvalidInput(f"there is no {what} {shown(name)}; there are {known}")


def _flag(parameters: Mapping[str, Json], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false")
    return value


def _read_inputs(
    given: Json, rest: memoryview, infos: tuple[TensorInfo, ...]
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for item in _listed(given, "inputs"):
        info = _by_name(item.get("name"), infos, "input")
        if info.name in arrays:
            raise InvalidInput(f"input {info.name!r} is given more than once")
        shape = info.check(item.get("datatype"), item.get("shape"))
        options = _tensor_parameters(item, info)
        size = options.get("binary_data_size")
        if size is None:
            arrays[info.name] = from_json(info, shape, item.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise MalformedBody(
                f"binary_data_size of {info.name} is {shown(size)}, but {len(rest)} bytes are "
                "left after the JSON; was Inference-Header-Content-Length sent?"
            )
        if item.get("data") is not None:
            raise InvalidInput(f"{info.name} has data and binary_data_size: send one of them")
        arrays[info.name] = from_binary(info, shape, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise MalformedBody(f"{len(rest)} bytes follow the last tensor")
    for info in infos:
        if info.name not in arrays and not info.optional:
            raise InvalidInput(f"input {info.name!r} is missing")
    return arrays


def _parameters(item: Mapping[str, Json], what: str) -> dict[str, Json]:
    """Those of a request or tensor; clients that write every field send null for none, and for
    each that is left out.
    """
    given = item.get("parameters")
    given = {} if given is None else _object(given, what)
    return {name: value for name, value in given.items() if value is not None}


def _tensor_parameters(item: Mapping[str, Json], info: TensorInfo) -> dict[str, Json]:
    options = _parameters(item, f"parameters of {info.name}")
    if "shared_memory_region" in options:
        raise InvalidInput("shared memory is not offered: send tensors as binary data")
    return options


def _wanted(given: Json, infos: tuple[TensorInfo, ...], binary: bool) -> list[Wanted]:
    if given is None or given == []:
        return [(info, binary) for info in infos]
    wanted: dict[str, Wanted] = {}
    for item in _listed(given, "outputs"):
        info = _by_name(item.get("name"), infos, "output")
        options = _tensor_parameters(item, info)
        if options.get("classification"):
            raise InvalidInput("classification of outputs is not offered: these are no classes")
        if info.name in wanted:
            raise InvalidInput(f"output {info.name!r} is asked for more than once")
        wanted[info.name] = (info, _flag(options, "binary_data", binary))
    return list(wanted.values())


def encode_response(
    response: InferResponse, request: InferRequest, *, model: str, version: str
) -> tuple[bytes, int | None]:
    """The body, and how many of its first bytes are JSON; None where all are."""
    blobs: list[bytes] = []
    outputs: list[str] = []
    for info, binary in request.outputs:
        array = response.outputs[info.name]
        output: dict[str, Json] = {
            "name": info.name,
            "datatype": info.datatype,
            "shape": list(array.shape),
        }
        if binary:
            blobs.append(to_binary(info, array))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
            outputs.append(ENCODER.encode(output))
        else:
            outputs.append(_with(output, "data", to_json(info, array)))
    document = {
        "model_name": model,
        "model_version": version,
        **({} if request.id is None else {"id": request.id}),
        "parameters": dict(response.parameters),
    }
    head = _with(document, "outputs", f"[{','.join(outputs)}]").encode("utf-8")
    if any(binary for _, binary in request.outputs):
        return b"".join((head, *blobs)), len(head)
    return head, None


def _with(document: dict[str, Json], name: str, value: str) -> str:
    """`document` as JSON, and in it `name` with a value that is JSON already."""
    return f'{ENCODER.encode(document)[:-1]},"{name}":{value}}}'
