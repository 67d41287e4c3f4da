"""The web application: routes, keys, limits, and clients that leave. It holds no model; engines do."""

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from frankenlm.sharing.live.models import Catalogue

from .asking import Asked, ask
from .engine import Engine
from .errors import ApiError, as_api_error, our_fault, shutting_down
from .requests import CompletionRequest, parse_body, read_chat, read_completion

logger = logging.getLogger("frankenlm.serving")

LARGEST_BODY = 4 * 2**20  # bytes
LARGEST_DRAINED = 16 * LARGEST_BODY
SLOWEST_BODY = 30.0  # seconds that a client may take to send its request


class Gone(Exception):
    """The client has left."""


Endpoint = Callable[..., Awaitable[Response]]


def answered(endpoint: Endpoint) -> Endpoint:
    """Turn whatever an endpoint raises into a reply, and write a line about it: never what was asked."""

    @functools.wraps(endpoint)
    async def wrapper(request: Request) -> Response:
        started = time.monotonic()
        try:
            response = await endpoint(request)
        except Gone:
            response = Response(status_code=499)  # read by nobody
        except Exception as error:  # noqa: BLE001  a client gets a reply whatever happens
            response = error_reply(as_api_error(error) or unforeseen(error))
        seconds = time.monotonic() - started
        logger.info("%s %s %d %.2f s", request.method, request.scope["route"].path, response.status_code, seconds)
        return response

    return wrapper


def unforeseen(error: Exception) -> ApiError:
    """Log the kind of an error and where it arose, and not its message, which may hold what a client sent."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s at %s:%s", type(error).__name__, last.filename, last.lineno)
    return our_fault()


def json_reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """ASCII: half of a surrogate pair, which a client may have sent, has no UTF-8."""
    return Response(json.dumps(content), status, dict(headers or {}), media_type="application/json")


def error_reply(error: ApiError) -> Response:
    return json_reply(error.body(), error.status, error.headers)


def make_application(engines: Mapping[str, Engine], api_key: str | None = None) -> FastAPI:
    """Return the application that answers for some models.

    Args:
        engines: by the names that clients use. api_key: what they must show; None: nothing.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for engine in engines.values():
            await asyncio.to_thread(engine.close)

    app = FastAPI(title="frankenlm", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_errors(app)
    _add_listings(app, engines, api_key)
    catalogue = Catalogue({name: name for name in engines})

    def add(path: str, read: Callable[[dict], CompletionRequest]) -> None:
        @app.post(path)
        @answered
        async def complete(request: Request) -> Response:
            check_key(request, api_key)
            wanted = read(parse_body(await read_body(request)))
            engine = engines[catalogue.place(wanted.model)]
            loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

            def deliver(index: int, piece: object) -> None:
                loop.call_soon_threadsafe(arrived.put_nowait, (index, piece))

            asked = await asyncio.to_thread(ask, engine, wanted, deliver)
            engine.submit(asked.jobs)
            pieces = arriving(request, asked, arrived)
            if not wanted.stream:
                return json_reply(await asked.whole(pieces))
            # an error of the first piece still has a status of its own
            first = await anext(chunks := asked.chunks(pieces))
            return StreamingResponse(events(first, chunks), media_type="text/event-stream", headers=NOT_KEPT)

    add("/v1/completions", read_completion)
    add("/v1/chat/completions", read_chat)
    return app


NOT_KEPT = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _add_errors(app: FastAPI) -> None:
    """What the framework refuses by itself."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        known = "GET /health, GET /v1/models, POST /v1/completions, POST /v1/chat/completions"
        what = "this address does not take the method" if error.status_code == 405 else "there is no such address"
        headers = dict(error.headers or {})
        return error_reply(ApiError(error.status_code, f"{what}. There are: {known}.", headers=headers))


def _add_listings(app: FastAPI, engines: Mapping[str, Engine], api_key: str | None) -> None:
    created = int(time.time())
    catalogue = Catalogue({name: name for name in engines})

    def listed(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "frankenlm"}

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        alive = all(engine.is_alive for engine in engines.values())
        busy = sum(engine.busy for engine in engines.values())
        state = {"status": "ok" if alive else "failed", "models": list(engines), "answers": busy}
        return json_reply(state, 200 if alive else 503)

    @app.get("/v1/models")
    @answered
    async def models(request: Request) -> Response:
        check_key(request, api_key)
        return json_reply({"object": "list", "data": [listed(name) for name in engines]})

    @app.get("/v1/models/{name:path}")
    @answered
    async def model(request: Request) -> Response:
        check_key(request, api_key)
        return json_reply(listed(catalogue.place(request.path_params["name"])))


def check_key(request: Request, api_key: str | None) -> None:
    """Raises ApiError for a request without the server's key."""
    if api_key is None:
        return
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), api_key.encode()):
        message = "no valid API key was given: send it as `Authorization: Bearer ...`."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: it is not said to be JSON, is too large, or does not come.
        Gone: the client left while sending it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # also what a page of another site can send from a visitor's browser without being asked
        raise ApiError(415, "send the request as JSON, with the header Content-Type: application/json.")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            while (message := await request.receive())["type"] == "http.request":
                piece = message.get("body", b"")
                size += len(piece)
                if size <= LARGEST_BODY:
                    body += piece
                # what is too large is read all the same, up to a point: one who is still writing hears no reply
                if size > LARGEST_DRAINED or (size > LARGEST_BODY and not message.get("more_body", False)):
                    raise ApiError(413, f"the body is larger than {LARGEST_BODY:,} bytes.", code="body_too_large")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {SLOWEST_BODY:g} s.") from None
    raise Gone


async def arriving(request: Request, asked: Asked, arrived: asyncio.Queue) -> AsyncIterator[tuple[int, object]]:
    """Yield (index, piece) until every answer is finished; however this ends, nothing is left that still writes.

    Raises:
        Gone: the client has left.
        ApiError: the server is shutting down.
    """
    leaving = asyncio.create_task(_until_gone(request))
    unfinished = len(asked.jobs)
    try:
        while unfinished:
            coming = asyncio.create_task(arrived.get())
            await asyncio.wait((coming, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                raise Gone
            index, piece = coming.result()
            if isinstance(piece, Exception):
                raise piece
            if piece.finish_reason == "cancelled":
                raise shutting_down()
            unfinished -= piece.finish_reason is not None
            yield index, piece
    finally:
        leaving.cancel()
        for job in asked.jobs:
            job.cancelled.set()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(first: dict, chunks: AsyncIterator[dict]) -> AsyncIterator[str]:
    """Server-sent events: a line of JSON each, [DONE] at the end; an error on the way is one of them."""
    try:
        yield f"data: {json.dumps(first)}\n\n"
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except Gone:
        return
    except Exception as error:  # noqa: BLE001  the reply has begun: its status cannot be changed any more
        yield f"data: {json.dumps((as_api_error(error) or unforeseen(error)).body())}\n\n"
    finally:
        await chunks.aclose()
