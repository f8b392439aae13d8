"""The operations behind Ray Serve: `serve run --working-dir . deploy.on_ray.serve_app:app`.

For those who live in Ray. Batching, bounds and fairness are the scheduler's within a replica.
"""

from __future__ import annotations

import math

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.codecs.npy import decode_npy
from service.errors import BadRequest, Overloaded
from service.operations.model import Model
from service.settings import SHIPPED_BUNDLE


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Scores:
    """uint8 npy ``[n, C, H, W]`` in, log-likelihoods out."""

    async def __init__(self, bundle: str = str(SHIPPED_BUNDLE)) -> None:
        self.model = Model.load(bundle, workers=1)
        await self.model.start()

    async def __call__(self, request: Request) -> Response:
        """Score the images of one request."""
        try:
            images = decode_npy(await request.body(), dtypes=("uint8",), max_items=2**26)
            scores = await self.model.score(images)
        except BadRequest as error:
            return JSONResponse({"detail": str(error)}, 400)
        except Overloaded as error:
            later = {"retry-after": str(math.ceil(error.retry_after_seconds))}
            return JSONResponse({"detail": str(error)}, 429, later)
        return JSONResponse({"log_likelihood_nats": scores.log_likelihood_nats.tolist()})


app = Scores.bind()
