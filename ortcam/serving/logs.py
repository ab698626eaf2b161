"""Log lines of a server: text for people, or JSON for collectors."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

_FIELDS = ("request", "door", "model", "status", "seconds", "reason")  # of a request


class _Text(logging.Formatter):
    """A line for people: time, level, message, and the id of the request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the standard library
        line = super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")
        request = getattr(record, "request", None)
        return line if request is None else f"{line} [{request}]"


class _Json(logging.Formatter):
    """A JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        said |= {"message": record.getMessage()}
        said |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def write_logs(form: Literal["text", "json"]) -> None:
    """Write the lines of ortcam and uvicorn to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for name, level in (("ortcam", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
