"""Exit with 0 if the server in this container is ready, else with 1 and the reason.

The image's HEALTHCHECK: the standard library alone, so that no curl is needed and it starts fast.
It asks where IAFVAE_HOST and IAFVAE_PORT say; a port given by `--port` it cannot know.
"""

from __future__ import annotations

import http.client
import os
import sys

# A server that listens everywhere is asked on the loopback device.
WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound to
SECONDS = 2.0


def problem(host: str, port: str) -> str | None:
    """Why the server at `host` and `port` is not ready, or None where it is."""
    try:
        connection = http.client.HTTPConnection(
            WILDCARDS.get(host, host), int(port), timeout=SECONDS
        )
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(200).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"no answer on port {port}: {error}"
    return None if response.status == 200 else f"{response.status} {body}"


def own_port(text: str) -> str:
    """The port that IAFVAE_PORT names; a Kubernetes Service named "iafvae" sets it to an URL."""
    return "8000" if not text or "://" in text else text


if __name__ == "__main__":
    reason = problem(
        os.environ.get("IAFVAE_HOST", "127.0.0.1"), own_port(os.environ.get("IAFVAE_PORT", ""))
    )
    if reason is not None:
        sys.exit(reason)
