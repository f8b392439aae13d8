"""Logs to standard error, as text for people or as JSON for collectors; URLs lose their secrets."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from service.errors import without_secrets

__all__ = ["LOGGERS", "configure_logging"]

LOGGERS = ("iafvae", "service", "uvicorn", "py.warnings")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; what is passed as ``extra={"fields": {...}}`` becomes members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


# A path may hold line breaks and a terminal's commands: callers must not write lines of their own.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class _TextFormatter(logging.Formatter):
    """For people: time, level, message, then the fields as ``name=value``, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """All of the record but a traceback, which comes after it on lines of its own."""
        fields = getattr(record, "fields", {})
        line = super().formatMessage(record) + "".join(f" {k}={v}" for k, v in fields.items())
        return line.translate(CONTROL)


# Lines of uvicorn's that tell nothing. The first two, which it calls errors, are how a stream ends
# that the drain cuts or whose model is gone; a line of our own says that the answer was broken off.
UNSAID = (
    "ASGI callable returned without completing response.",
    "Cancel %s running task(s), timeout graceful shutdown exceeded",
    "Started server process [%d]",
    "Waiting for application startup.",
    "Application startup complete.",
    "Waiting for application shutdown.",
    "Application shutdown complete.",
    "Finished server process [%d]",
)


def configure_logging(level: str, form: str) -> None:
    """Send the logs of this program and of uvicorn to standard error, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonFormatter()
        if form == "json"
        else _TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    logging.captureWarnings(True)  # of libraries: a line of the log like any other
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg not in UNSAID)
