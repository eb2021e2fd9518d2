"""What requests of the page hold, checked: bounded bodies, seeds, photographs, steering."""

from collections.abc import Mapping
import io
from typing import Any

from jaxtyping import UInt8
import numpy as np

from eqjax import image_files
from eqjax.io import parse_json
from eqjax.messages import shorten
from eqjax.rules import Integer

# A body of JSON holds a seed.
MAX_JSON_BYTES = 4096
# Photographs: above what telephones take; below what would keep a small machine busy.
MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 20 * 2**20, 64_000_000
_SEED = Integer(least=0, most=2**31 - 1)
# Fields of a `Steering`, which checks their ranges.
_STEERING: dict[str, type] = {
    "first_class": int,
    "second_class": int,
    "mix": float,
    "guidance_scale": float,
    "temperature": float,
}


class RequestError(Exception):
    """A request that cannot be answered as it was meant.

    Attributes:
      status: the HTTP status.
      message: one sentence.
      retry_after: seconds after which to ask again; None: it would not help.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.retry_after = status, message, retry_after


async def read_body(request: Any, *, max_bytes: int, what: str) -> bytes:
    """Returns the body of a request; stops to read when it is larger than allowed.

    Args:
      request: a `starlette.requests.Request`.
      max_bytes: the bound.
      what: subject of the message, such as "The photograph".

    Raises:
      RequestError: 413, the body is larger, or says that it is; 400, the client has left.
    """
    from starlette.requests import ClientDisconnect

    refusal = RequestError(413, f"{what} is larger than {max_bytes / 2**20:.3g} MB: send a smaller one.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > max_bytes:
        raise refusal
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise refusal
            parts.append(part)
    except ClientDisconnect as error:
        raise RequestError(400, f"{what} did not arrive completely.") from error
    return b"".join(parts)


def parse_seed(text: Any) -> int:
    """Returns a seed, given as an integer or its digits.

    Raises:
      RequestError: 400, it is no seed.
    """
    value = int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 10 else text
    try:
        return _SEED.check("seed", value)
    except (TypeError, ValueError) as error:
        raise RequestError(400, str(error)) from error


def parse_session(body: bytes) -> int:
    """Returns the seed of a JSON body {"seed": 0}.

    Raises:
      RequestError: 400, the body is something else.
    """
    try:
        values = parse_json(body.decode())
    except ValueError as error:
        raise RequestError(400, 'The body is no JSON; expected {"seed": 0}.') from error
    if not isinstance(values, dict) or set(values) != {"seed"}:
        raise RequestError(400, 'The body must be {"seed": 0}, with nothing else.')
    return parse_seed(values["seed"])


def decode_photo(body: bytes, *, max_pixels: int = MAX_UPLOAD_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of a photograph, by the rules of `eqjax.image_files`.

    Args:
      body: the bytes of an image file.
      max_pixels: largest number of pixels.

    Raises:
      RequestError: 415, the bytes are no image of a known format; 413, it has too many pixels; 400, it is damaged.
    """
    if not body:
        raise RequestError(400, "The photograph is empty: send the bytes of an image file.")
    try:
        return image_files.decode(io.BytesIO(body), max_pixels=max_pixels)
    except image_files.ImageError as error:
        text = str(error)
        if "max_pixels" in text:
            raise RequestError(
                413, f"The photograph has more than {max_pixels // 10**6} million pixels: send a smaller one."
            ) from error
        if "its format is none of" in text:
            known = ", ".join(image_files.FORMATS)
            raise RequestError(415, f"The file is no image of a format that this server reads ({known}).") from error
        raise RequestError(400, "The photograph is damaged, and cannot be read.") from error


def parse_steering(query: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of a `Steering` in a query, by the names of its fields.

    Args:
      query: the texts.

    Raises:
      RequestError: 400, one is missing, unknown, or no number.
    """
    if set(query) != set(_STEERING):
        missing, unknown = sorted(set(_STEERING) - set(query)), sorted(set(query) - set(_STEERING))
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has an unknown {shorten(', '.join(unknown))}"] if unknown else []
        raise RequestError(400, f"The steering {' and '.join(parts)}; expected {', '.join(_STEERING)}.")
    values = {}
    for name, kind in _STEERING.items():
        try:
            values[name] = kind(query[name])
        except ValueError as error:
            expected = "an integer" if kind is int else "a number"
            raise RequestError(400, f"{name}={shorten(query[name])} must be {expected}.") from error
    return values
