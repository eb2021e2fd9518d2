"""What every answer and every request of the page's server has to keep to: headers, hosts, origins."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
import fnmatch
import ipaddress
import json
from typing import Any
import urllib.parse

from eqjax.messages import shorten

# Messages of ASGI, which are dictionaries.
Message = MutableMapping[str, Any]

# Pages that may show this one in a frame: itself, notebooks of Colab, Spaces of Hugging Face.
FRAME_ANCESTORS = (
    "'self'",
    "https://colab.research.google.com",
    "https://*.googleusercontent.com",
    "https://huggingface.co",
)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_READING = ("GET", "HEAD")


def is_loopback(host: str) -> bool:
    """Returns whether a server bound to this host can be reached from its own machine only.

    Example:
      >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
      (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def security_headers(frame_ancestors: Sequence[str] = FRAME_ANCESTORS) -> dict[str, str]:
    """Returns the headers of every answer.

    Scripts, styles and requests come from this server alone, and nothing in a page is run that no file holds.

    Args:
      frame_ancestors: origins of pages that may show this one in a frame, as Content-Security-Policy writes them.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": " ".join(frame_ancestors) or "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
    }


class Guard:
    """ASGI application around another one: refuses foreign hosts and origins, and adds `security_headers`.

    A page of another site can make a visitor's browser send requests here: under a name of its own that resolves to
    this machine (DNS rebinding), or across origins. The first is refused by the name in the header Host. The second is
    refused, for requests that change something, by Sec-Fetch-Site, or by Origin where a browser does not send that.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        allowed_hosts: Sequence[str],
        frame_ancestors: Sequence[str] = FRAME_ANCESTORS,
    ) -> None:
        """Keeps the arguments.

        Args:
          app: the application.
          allowed_hosts: names in Host that are answered, without port; `*.name` stands for all names below it, and
            `*` for every name.
          frame_ancestors: as for `security_headers`.
        """
        self._app, self._hosts = app, [host.lower() for host in allowed_hosts]
        self._headers = [(n.encode(), v.encode()) for n, v in security_headers(frame_ancestors).items()]

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        body = json.dumps({"error": refusal}).encode()
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": about})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    def _refusal(self, method: str, headers: dict[str, str]) -> str | None:
        """Returns why a request is refused, or None."""
        host = headers.get("host", "")
        name = _host_name(host)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self._hosts):
            return (
                f"This server does not answer to the name {shorten(name)!r}; --allowed_hosts lists those it answers to."
            )
        if method in _READING:
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            is_foreign = site not in ("same-origin", "none")
        else:
            is_foreign = origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower()
        return "The request comes from a page of another origin, which may not send it." if is_foreign else None


def _host_name(host: str) -> str:
    """Returns the name of a header Host, in small letters, without port and brackets."""
    try:
        return (urllib.parse.urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:  # An address in broken brackets.
        return ""
