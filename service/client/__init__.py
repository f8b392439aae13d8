"""Typed HTTP clients. They need httpx, NumPy, `service.codecs` and `service.errors`."""

from service.client.async_client import AsyncClient
from service.client.client import Client
from service.client.results import Computed, ProblemError, ScoreTable, ServiceUnreachable

__all__ = ["AsyncClient", "Client", "Computed", "ProblemError", "ScoreTable", "ServiceUnreachable"]
