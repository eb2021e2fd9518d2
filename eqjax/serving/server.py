"""The page and its requests over HTTP, around an `Engine`.

    GET    /                                        the page; its other files beside it
    GET    /api/model                               classes, sizes, bounds and defaults
    GET    /api/classes/{label}                     a small PNG of a class
    POST   /api/sessions                            JSON {"seed": 0}, or the bytes of a photograph with ?seed=0
    GET    /api/sessions/{id}/{side}/{index}?…      strip `index` of a side as PNG; the query is the steering
    DELETE /api/sessions/{id}                       ends a session; so does POST …/close, which browsers send on leaving
    GET    /api/status, /health                     counts; whether the server answers

Strips are asked for one by one, so that nothing is drawn for who does not watch. They are numbered: asking again for
one of the last three gives the same pixels. Errors are JSON, {"error": "one sentence"}.
"""

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

from absl import logging

from eqjax import extras
from eqjax.serving import errors, requests
from eqjax.serving.images import to_png
from eqjax.serving.page_files import load_page_files
from eqjax.serving.requests import RequestError
from eqjax.serving.security import FRAME_ANCESTORS, Guard

_SIDES = ("left", "right")
# Seconds for which a request waits for its strip, and for which a photograph may take to arrive.
_STRIP_SECONDS, _UPLOAD_SECONDS = 30.0, 60.0
# Photographs that may arrive at the same time, and be decoded: one may take some hundred MB.
_MAX_UPLOADS, _MAX_DECODED = 8, 2


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What a server allows.

    Attributes:
      allowed_hosts: names in the header Host that are answered, see `eqjax.serving.security.Guard`.
      frame_ancestors: origins of pages that may show the page in a frame.
      max_upload_bytes: largest file of a photograph.
      max_upload_pixels: largest number of pixels of a photograph.
      max_waiting: requests that may wait for the engine at the same time; others queue behind them.
    """

    allowed_hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1")
    frame_ancestors: Sequence[str] = FRAME_ANCESTORS
    max_upload_bytes: int = requests.MAX_UPLOAD_BYTES
    max_upload_pixels: int = requests.MAX_UPLOAD_PIXELS
    max_waiting: int = 64


def create_app(
    engine: Any, model: Mapping[str, Any], thumbnails: Sequence[bytes] = (), options: ServerOptions | None = None
) -> Guard:
    """Returns the ASGI application.

    Args:
      engine: a started `eqjax.serving.engine.Engine`.
      model: JSON values that describe the model for the page, see `eqjax.serving.description`.
      thumbnails: PNG files of the classes, in their order; none: the page shows names.
      options: what is allowed; None for the defaults.

    Raises:
      ModuleNotFoundError: starlette is missing; the message gives the command that installs it.
    """
    extras.require("starlette", "The page")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    options = options or ServerOptions()
    api = _Api(engine, model, thumbnails, options)
    session = "/api/sessions/{session}"
    routes = [
        Route("/", api.file, methods=["GET"]),
        Route("/api/model", api.describe, methods=["GET"]),
        Route("/api/classes/{label:int}", api.thumbnail, methods=["GET"]),
        Route("/api/sessions", api.open, methods=["POST"]),
        Route(session, api.close, methods=["DELETE"]),
        Route(session + "/close", api.close, methods=["POST"]),
        Route(session + "/{side}/{index:int}", api.strip, methods=["GET"]),
        Route("/api/status", api.status, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        Route("/{name}", api.file, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, RequestError: _request_error, Exception: _failure}
    handlers |= {errors.EngineError: _engine_error}
    return Guard(
        Starlette(routes=routes, exception_handlers=handlers),
        allowed_hosts=options.allowed_hosts,
        frame_ancestors=options.frame_ancestors,
    )


class _Api:
    """The handlers; what blocks runs in threads, of which there are so many and no more."""

    def __init__(
        self, engine: Any, model: Mapping[str, Any], thumbnails: Sequence[bytes], options: ServerOptions
    ) -> None:
        self._engine, self._thumbnails, self._options = engine, thumbnails, options
        bounds = dict(max_upload_bytes=options.max_upload_bytes, max_upload_pixels=options.max_upload_pixels)
        self._model = {**model, **bounds, "has_thumbnails": bool(thumbnails)}
        self._files = load_page_files()
        self._uploads = 0

    @functools.cached_property
    def _threads(self) -> Any:
        """Bound on the threads that wait for the engine; made in the event loop to which it belongs."""
        import anyio

        return anyio.CapacityLimiter(self._options.max_waiting)

    @functools.cached_property
    def _decoders(self) -> Any:
        import anyio

        return anyio.CapacityLimiter(_MAX_DECODED)

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that blocks in a thread."""
        import anyio

        try:
            return await anyio.to_thread.run_sync(function, *args, limiter=self._threads)
        except (TypeError, ValueError) as error:
            raise RequestError(400, str(error)) from error

    async def file(self, request: Any) -> Any:
        """Answers with a file of the page."""
        from starlette.responses import Response

        name = request.path_params.get("name", "index.html")
        found = self._files.get(name)
        if found is None:
            raise RequestError(404, "There is nothing at this address.")
        headers = {"etag": found.tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)

    async def describe(self, request: Any) -> Any:
        """Answers with the description of the model."""
        del request
        return _json(self._model)

    async def thumbnail(self, request: Any) -> Any:
        """Answers with the image of a class."""
        label = request.path_params["label"]
        if label >= len(self._thumbnails):
            raise RequestError(404, f"There is no image of class {label}.")
        return _png(self._thumbnails[label], "max-age=3600")

    async def open(self, request: Any) -> Any:
        """Begins a session, with a photograph or without."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            body = await _in_time(requests.read_body(request, max_bytes=requests.MAX_JSON_BYTES, what="The body"))
            found = await self._call(functools.partial(self._engine.open, seed=requests.parse_session(body)))
        elif kind.startswith("image/") or kind == "application/octet-stream":
            seed = requests.parse_seed(request.query_params.get("seed", "0"))
            found = await self._open_photo(request, seed)
        else:
            raise RequestError(
                415, "A session begins with application/json, or with the bytes of a photograph as image/*."
            )
        answer = {"id": found.id, "seed": found.seed, "sides": found.sides, "photo": None}
        if found.photo is not None:
            answer["photo"] = base64.b64encode(await self._call(to_png, found.photo)).decode()
        return _json(answer, 201)

    async def _open_photo(self, request: Any, seed: int) -> Any:
        if self._uploads >= _MAX_UPLOADS:
            raise RequestError(503, "Too many photographs are arriving: send yours again in a moment.", 5)
        self._uploads += 1
        try:
            reading = requests.read_body(request, max_bytes=self._options.max_upload_bytes, what="The photograph")
            body = await _in_time(reading)
            decode = functools.partial(requests.decode_photo, max_pixels=self._options.max_upload_pixels)
            async with self._decoders:
                photo = await self._call(decode, body)
                return await self._call(functools.partial(self._engine.open, seed=seed, photo=photo))
        finally:
            self._uploads -= 1

    async def strip(self, request: Any) -> Any:
        """Answers with a strip."""
        session, side, index = (request.path_params[name] for name in ("session", "side", "index"))
        if side not in _SIDES:
            raise RequestError(404, "The sides are called left and right.")
        values = requests.parse_steering(request.query_params)
        return _png(await self._call(self._draw, session, side, index, values), "no-store")

    def _draw(self, session: str, side: str, index: int, values: dict[str, Any]) -> bytes:
        from eqjax.serving.steering import Steering

        return to_png(self._engine.strip(session, side, index, Steering(**values), _STRIP_SECONDS))

    async def close(self, request: Any) -> Any:
        """Ends a session; it may have ended already."""
        from starlette.responses import Response

        with contextlib.suppress(errors.UnknownSession):
            await self._call(self._engine.drop, request.path_params["session"])
        return Response(status_code=204)

    async def status(self, request: Any) -> Any:
        """Answers with counts."""
        del request
        return _json(dataclasses.asdict(self._engine.status()))

    async def health(self, request: Any) -> Any:
        """Says that the server answers."""
        del request
        return _json({"status": "ok"})


async def _in_time(work: Awaitable[Any]) -> Any:
    """Returns what is read from a client, which must not take for ever.

    Raises:
      RequestError: 408, it does.
    """
    import anyio

    try:
        with anyio.fail_after(_UPLOAD_SECONDS):
            return await work
    except TimeoutError as error:
        raise RequestError(408, f"The request did not arrive within {_UPLOAD_SECONDS:.0f} seconds.") from error


def _json(values: Any, status: int = 200, **headers: str) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(values, status, headers={"cache-control": "no-store", **headers})


def _png(content: bytes, cache: str) -> Any:
    from starlette.responses import Response

    return Response(content, media_type="image/png", headers={"cache-control": cache})


async def _request_error(request: Any, error: RequestError) -> Any:
    del request
    if error.retry_after is not None:
        return _unavailable(error.message, error.retry_after)
    return _json({"error": error.message}, error.status)


async def _http_error(request: Any, error: Any) -> Any:
    """Answers what starlette refuses itself: unknown addresses and methods."""
    texts = {404: "There is nothing at this address.", 405: f"This address does not answer to {request.method}."}
    return _json({"error": texts.get(error.status_code, error.detail)}, error.status_code, **(error.headers or {}))


async def _engine_error(request: Any, error: errors.EngineError) -> Any:
    """Answers what the engine refuses."""
    del request
    if isinstance(error, errors.UnknownSession):
        return _json({"error": str(error)}, 410)
    if isinstance(error, errors.WrongOrder):
        return _json({"error": str(error), "expected": error.expected}, 409)
    if isinstance(error, errors.EngineFailed):
        logging.error("A strip could not be drawn: %s", error, exc_info=error)
        return _json({"error": str(error)}, 500)
    return _unavailable(str(error), error.retry_after if isinstance(error, errors.Full) else 1)


def _unavailable(text: str, seconds: int) -> Any:
    return _json({"error": text, "retry_after": seconds}, 503, **{"retry-after": str(seconds)})


async def _failure(request: Any, error: Exception) -> Any:
    """Answers what nothing foresaw, without its details."""
    del request, error  # starlette raises it again, and uvicorn logs it.
    return _json({"error": "The server failed at this request; its log says why."}, 500)
