"""Errors in the shape of the OpenAI API: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

from frankenlm.sharing.live.models import UnknownModel
from frankenlm.sharing.live.options import BadOption
from frankenlm.trainer_ext.common.cli import Failed, UserError, one_line

from .engine import EngineClosed, Overloaded

# what an option is called where the API has a name of its own
API_NAMES = {"max_new_tokens": "max_tokens"}


class ApiError(Exception):
    """What a client is told. param: the field that is wrong. code: a word that programs can compare."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_value(param: str, message: str, code: str | None = None) -> ApiError:
    """A field of the request that nothing can be done with."""
    return ApiError(400, message, param=param, code=code)


def our_fault() -> ApiError:
    """What a client is told of an error that it cannot put right."""
    message = "something went wrong in the server, whose log says what kind of thing."
    return ApiError(500, message, kind="server_error", code="failed")


def shutting_down() -> ApiError:
    """The server ends, and with it the answers that are under way."""
    return ApiError(503, "the server is shutting down: try again later.", kind="server_error", code="shutting_down")


def as_api_error(error: Exception, param: str | None = None) -> ApiError | None:
    """Return what a client is told of an error; None for one that is our own fault."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadOption):
        name = API_NAMES.get(error.name, error.name)
        return bad_value(name, one_line(error).replace(error.name, name, 1))
    if isinstance(error, UnknownModel):
        return ApiError(404, one_line(error), param="model", code="model_not_found")
    if isinstance(error, UserError):
        return ApiError(400, one_line(error), param=param)
    if isinstance(error, Overloaded):
        wait = {"Retry-After": str(error.retry_after)}
        return ApiError(429, one_line(error), kind="rate_limit_error", code="overloaded", headers=wait)
    if isinstance(error, EngineClosed):
        return shutting_down()
    if isinstance(error, Failed):
        return ApiError(500, one_line(error), kind="server_error", code="model_failed")
    return None
