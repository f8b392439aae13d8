"""The pages that people look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

__all__ = ["page_routes"]

WEB = Path(__file__).resolve().parents[2] / "web"
# The pages load nothing from anywhere else, and a browser is told to hold them to it.
FILE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    ),
    "cache-control": "no-cache",
}


def page_routes() -> list[Route | Mount]:
    """``/``, ``/docs`` and what they load."""
    files = _Files(directory=WEB)

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def docs(request: Request) -> Response:
        return await files.get_response("docs.html", request.scope)

    return [
        Route("/", page, methods=["GET"], include_in_schema=False),
        Route("/docs", docs, methods=["GET"], include_in_schema=False),
        Mount("/web", files),
    ]


class _Files(StaticFiles):
    """Files that browsers ask about again, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(FILE_HEADERS)
        return response
