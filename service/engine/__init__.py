"""One operation on one batch. ONNX Runtime is imported by `onnxruntime_engine` alone, when an
engine is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.bundle import Bundle
    from service.engine.base import EngineBase
    from service.engine.options import EngineOptions

__all__ = ["make_engine"]


def make_engine(bundle: Bundle, options: EngineOptions) -> EngineBase:
    """The engine of `bundle`; not warm yet.

    Raises ProviderUnavailable where what `options` demand is not there, and BundleError where the
    graphs cannot be loaded.
    """
    from service.engine.onnxruntime_engine import Engine

    return Engine(bundle, options)
