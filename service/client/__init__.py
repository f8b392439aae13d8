"""Typed HTTP clients. They need httpx, NumPy and `service.codecs`, nothing else of the service."""

from service.client.async_client import AsyncClient
from service.client.client import Client
from service.client.results import Computed, ProblemError, ScoreTable, ServiceUnreachable

__all__ = ["AsyncClient", "Client", "Computed", "ProblemError", "ScoreTable", "ServiceUnreachable"]
