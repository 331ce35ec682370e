"""What schemathesis is to do beside what the document says, read by its process: real ids in most paths."""

import json
import os
from typing import Any, Final
from zlib import crc32

import schemathesis

IDS: Final[dict[str, str]] = json.loads(os.environ["FUZZED_IDS"])


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """A random id is of nothing, and would show the 404 alone. What is there is left there for the other requests."""
    if not path_parameters or context.operation.method.upper() == "DELETE":
        return path_parameters
    return {
        name: IDS[name] if name in IDS and crc32(repr(value).encode()) % 4 else value
        for name, value in path_parameters.items()
    }


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:  # noqa: ARG001
    """A random position is of nothing, and would show the 400 alone."""
    if headers and "If-Event-Position" in headers and crc32(repr(headers).encode()) % 4:
        headers["If-Event-Position"] = "jobs/0/0"
    return headers
