"""Which backend computes: chosen by the operator, loaded where it is chosen, never silently."""

from __future__ import annotations

from service.bundle import Bundle
from service.engine.base import EngineBase, EngineOptions
from service.errors import ProviderUnavailable

__all__ = ["EngineBase", "EngineOptions", "make_engine"]


def make_engine(bundle: Bundle, options: EngineOptions) -> EngineBase:
    """The engine of ``options.backend`` for `bundle`; not warm yet.

    Raises ProviderUnavailable where the backend is not installed or does not have what `options`
    demand, and BundleError where it cannot load the graphs.
    """
    if options.backend == "openvino":
        try:
            from service.engine.openvino_engine import OpenVinoEngine
        except ImportError as error:
            raise ProviderUnavailable(
                f"the backend openvino was chosen but cannot be loaded ({error}): install"
                " iafvae[openvino], or set IAFVAE_BACKEND to onnxruntime"
            ) from error
        return OpenVinoEngine(bundle, options)
    from service.engine.onnxruntime_engine import Engine

    return Engine(bundle, options)
