"""JSON documents of ``/v2``, as the Open Inference Protocol has them: for OpenAPI and the tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.v2.tensors import Datatype

__all__ = [
    "HealthDocument",
    "InferDocument",
    "InferResult",
    "InferenceError",
    "ModelConfig",
    "ModelMetadata",
    "ModelReady",
    "RepositoryEntry",
    "ServerMetadata",
    "StatisticsDocument",
]

Numbers = Annotated[list[Any], Field(description="Numbers, flat or nested, in row-major order.")]


class Document(BaseModel):
    """Names such as `model_name` are the protocol's."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class InferenceError(Document):
    """Every error under ``/v2``."""

    error: str
    """What was wrong, and what to do."""


class HealthDocument(Document):
    """Whether the server lives, or is ready."""

    live: bool | None = None
    ready: bool | None = None


class ServerMetadata(Document):
    """The server, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(Document):
    """Whether a model takes requests."""

    name: str
    ready: bool


class TensorMetadata(Document):
    """An input or output; -1 is a size that may vary."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(Document):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(Document):
    """A tensor in a model's configuration, without the batch's size."""

    name: str
    data_type: Literal["TYPE_FP32", "TYPE_UINT8", "TYPE_INT8", "TYPE_INT64", "TYPE_STRING"]
    dims: list[int]
    optional: bool = False


class ModelConfig(Document):
    """A model's configuration, as clients read it to learn the largest batch."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    """Rows of one request."""
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class Duration(Document):
    """How often, and for how many nanoseconds in all."""

    count: int
    ns: int


class Statistics(Document):
    """Of all requests since the server started, whichever version answered."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_infer: Duration


class ModelStatistics(Document):
    """What one model has done, all of its versions together; `inference_count` counts rows,
    `execution_count` batches."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: Statistics


class StatisticsDocument(Document):
    """What the models have done."""

    model_stats: list[ModelStatistics]


class RepositoryEntry(Document):
    """A model that is here."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


class InputTensor(Document):
    """An input: with `data`, or with `parameters.binary_data_size` and bytes after the JSON."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Field(ge=0)]]
    parameters: dict[str, Any] = {}
    data: Numbers | None = None


class RequestedOutput(Document):
    """An output that is asked for; `parameters.binary_data` asks for its bytes."""

    name: str
    parameters: dict[str, Any] = {}


class InferDocument(Document):
    """The JSON of a request."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    """The model's own, and binary_data_output: bytes for all outputs."""
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    """Absent or empty: all of the model's."""


class OutputTensor(Document):
    """An output: with `data`, or with `parameters.binary_data_size` and bytes after the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[float | str | None] | None = None
    """null where not finite."""


class InferResult(Document):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[OutputTensor]
