"""What is told of an error over HTTP: the error object of OpenAI's API, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ControlError, DemeanorError
from .engine import Busy
from .shelf import Unknown


class ApiError(Exception):
    """An answer that is an error: its HTTP status and the four fields of the error object."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def as_api_error(error: DemeanorError) -> ApiError:
    """A sentence for a caller, with its status."""
    if isinstance(error, Busy):
        status, kind, code = (503, "server_error", "closing") if error.closing else (429, "rate_limit_error", "busy")
        return ApiError(status, str(error), kind, code, headers={"Retry-After": str(error.seconds)})
    if isinstance(error, Unknown):
        return ApiError(400, str(error), code="control_not_found", param="controls")
    if isinstance(error, ControlError):
        return ApiError(400, str(error), code="control_not_applicable", param="controls")
    return ApiError(400, str(error))
