"""The pages that people look at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["page_routes"]

WEB = Path(__file__).resolve().parents[2] / "web"
# The pages load nothing from anywhere else, and a browser is told to hold them to it.
FILE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    ),
    "cache-control": "no-cache",
    "accept-ranges": "none",
}


def page_routes(app: FastAPI) -> list[Route | Mount]:
    """``/``, ``/docs`` and what they load, and the document that describes `app`."""
    files = _Files(directory=WEB)
    kept: tuple[dict[str, Any], str, bytes] | None = None  # the last one, and what it was made of

    def document(root_path: str) -> bytes:
        nonlocal kept
        last, made = kept, app.openapi()  # looked at once: other threads write it, too
        if last is None or last[0] is not made or last[1] != root_path:
            servers = {"servers": [{"url": root_path}]} if root_path else {}
            last = kept = made, root_path, bytes(JSONResponse(made | servers).body)
        return last[2]

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def docs(request: Request) -> Response:
        return await files.get_response("docs.html", request.scope)

    async def openapi(request: Request) -> Response:
        root_path = request.scope.get("root_path", "").rstrip("/")
        body = await asyncio.to_thread(document, root_path)  # the first time, a tenth of a second
        return Response(body, media_type="application/json")

    return [
        Route("/openapi.json", openapi, methods=["GET"], include_in_schema=False),
        Route("/", page, methods=["GET"], include_in_schema=False),
        Route("/docs", docs, methods=["GET"], include_in_schema=False),
        Mount("/web", files),
    ]


class _Files(StaticFiles):
    """Files that browsers ask about again, so that an upgrade is seen at once, and whole ones."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        # They are small, and Starlette answers a wrong Range with plain text.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        return await super().get_response(path, scope)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(FILE_HEADERS)
        return response
