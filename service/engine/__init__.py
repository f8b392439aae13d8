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
    """The engine of `bundle`, warm.

    With ``auto`` a GPU is used where all of it works: where it does not, the reason is logged and
    the CPU computes. Raises ProviderUnavailable where ``cuda`` is demanded and not there, and
    BundleError where the graphs cannot be loaded or known answers are not reproduced.
    """
    from service.engine.choice import warm_engine

    return warm_engine(bundle, options)
