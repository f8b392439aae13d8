"""``/v1/admin``: what is loaded, changed while it serves; for holders of an administrator's key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from service.api.openapi import documented
from service.api.security.keys import is_admin
from service.errors import Forbidden
from service.repository.manager import ModelChange, ModelManager

__all__ = ["admin_router"]

Name = Annotated[
    str, Path(description="A loaded model: its name, or name@version where several are loaded.")
]
Directory = Annotated[
    str, Path(description="The name of a bundle's directory below IAFVAE_MODELS.")
]


def admin_router(manager: ModelManager) -> APIRouter:
    """``POST /v1/admin/models/{name}/...``: one change at a time, answered when it is done."""
    router = APIRouter(
        prefix="/v1/admin/models",
        tags=["administration"],
        dependencies=[Depends(_administrator)],
        responses=documented(401, 403, 404, 409, 422, 503),
    )

    @router.post("/{name}/load", summary="Load a bundle, or swap a changed one in")
    async def load(name: Directory) -> ModelChange:
        """Answers when the bundle serves. One that fails its canaries on this machine is
        refused (422) and what was loaded before stays; one that is loaded already is left alone.
        """
        return await manager.load(name)

    @router.post("/{name}/reload", summary="Load a model anew from its directory")
    async def reload(name: Name) -> ModelChange:
        """It is loaded anew also where its bundle has not changed. Requests in flight are answered
        by the old one.
        """
        return await manager.reload(name)

    @router.post("/{name}/unload", summary="Take a model out")
    async def unload(name: Name) -> ModelChange:
        """Requests in flight are answered first, then its memory is freed. The default
        model and a pinned version stay (409).
        """
        return await manager.unload(name)

    @router.post("/{name}/default", summary="Answer with this model where none is named")
    async def default(name: Annotated[str, Path(description="A loaded model.")]) -> ModelChange:
        """The choice holds until the process ends; IAFVAE_DEFAULT_MODEL makes it lasting."""
        return manager.choose(name)

    @router.post("/{name}/pin", summary="Answer with this version where none is named")
    async def pin(
        name: Name,
        version: Annotated[
            str | None, Query(description="A loaded version; absent: the newest, as before.")
        ] = None,
    ) -> ModelChange:
        """The choice holds until the process ends."""
        return manager.pin(name, version)

    return router


async def _administrator(request: Request) -> None:
    """Raises Forbidden for everybody but the holder of an administrator's key."""
    holder = request.scope.get("state", {}).get("caller")
    if holder is None:
        raise Forbidden(
            "models are changed with an administrator's key alone, and this server has no keys: "
            "start it with IAFVAE_KEYS_FILE"
        )
    if not is_admin(holder):
        raise Forbidden(
            "this key is no administrator's: those are held by 'admin' or by names that end in "
            "'@admin'"
        )
