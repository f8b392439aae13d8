"""Which engine computes: the GPU's where it was demanded or really works, else the CPU's."""

from __future__ import annotations

import functools
import logging

from service.bundle import Bundle, BundleError
from service.engine.base import EngineBase
from service.engine.cuda_engine import CudaEngine
from service.engine.onnxruntime_engine import Engine, gpu_problem
from service.engine.options import EngineOptions
from service.errors import IafvaeError, ProviderUnavailable

__all__ = ["make_engine"]

logger = logging.getLogger(__name__)


def make_engine(bundle: Bundle, options: EngineOptions) -> EngineBase:
    """The engine of `bundle`, warm.

    With ``auto`` a GPU is used where all of it works: where it does not, the reason is logged and
    the CPU computes. Raises ProviderUnavailable where ``cuda`` is demanded and not there,
    BundleError where the graphs cannot be loaded or known answers are not reproduced, and
    EngineFailure where there is no memory for it.
    """
    if options.provider == "cpu":
        return _warm(Engine(bundle, options))
    problem = gpu_problem(options.device)
    if problem is None:
        try:
            return _warm(CudaEngine(bundle, options))
        except (BundleError, IafvaeError) as error:
            if options.provider == "cuda":
                raise
            problem = str(error)
    if options.provider == "cuda":
        raise ProviderUnavailable(
            f"cuda was demanded but {problem}: on a machine with an NVIDIA GPU and its driver"
            " pip install -e '.[cuda]' -c constraints.txt, or set the provider to auto or cpu"
        )
    _tell(problem)
    return _warm(Engine(bundle, options))


@functools.cache
def _tell(problem: str) -> None:
    """Say why the CPU computes: once, however many models are loaded."""
    logger.info("computing on the CPU: %s", problem)


def _warm(engine: EngineBase) -> EngineBase:
    try:
        engine.warm()
    except BaseException:
        engine.close()
        raise
    return engine
