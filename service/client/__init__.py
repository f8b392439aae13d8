"""A typed HTTP client; it needs the codecs alone."""

from service.client.client import Client, ProblemError, ServiceUnreachable

__all__ = ["Client", "ProblemError", "ServiceUnreachable"]
