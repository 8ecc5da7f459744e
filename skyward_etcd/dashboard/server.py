"""The page's server: five addresses that are read, and nothing that is written.

A page of somebody else's in the user's browser can send requests to this machine, but only under a name of its own
(after DNS rebinding), which is refused; and it cannot read the answers to others. The page itself runs nothing but what
came from here, and shows names as text.
"""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Callable, Collection
from importlib import resources
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skyward_etcd.dashboard.looking import Looking

__all__ = ["application", "names_of", "serve"]

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
_REFUSAL = PlainTextResponse(
    "not under this name: skyward-etcd dashboard --allow-host NAME, if it is one of yours\n", 421
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def names_of(host: str) -> frozenset[str]:
    """Return the names under which a server at this address is asked for: for a loopback address that of each."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _LOOPBACK if host.lower() == "localhost" else frozenset({host.lower()})
    if address.is_unspecified:
        return frozenset()
    return _LOOPBACK | {host} if address.is_loopback else frozenset({host})


def application(looking: Looking, *, names: Collection[str]) -> Starlette:
    """Return the server's application; who asks for it under another name than these is refused (``*``: any name)."""
    routes = [Route(path, _file(*file)) for path, file in _PAGE.items()]
    routes.append(Route("/state.json", _state(looking)))
    routes.append(Route("/metrics", _metrics(looking)))
    return Starlette(routes=routes, middleware=[Middleware(_Guard, names=frozenset(name.lower() for name in names))])


def serve(looking: Looking, *, host: str, port: int, names: Collection[str]) -> None:
    """Serve the page until SIGINT or SIGTERM."""
    looking.start()
    try:
        uvicorn.run(
            application(looking, names=names),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
    finally:
        looking.stop()


class _Guard:
    """Refuses requests under another name, and says in all answers what a browser may do with them.

    Starlette's own ``TrustedHostMiddleware`` takes the ``[`` of ``[::1]:8379`` for the name.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the beginning and the end of the server
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        known = "*" in self._names or _name(Request(scope)) in self._names
        await (self._app if known else _REFUSAL)(scope, receive, send_guarded)


def _name(request: Request) -> str:
    try:
        return (urlsplit(f"//{request.headers.get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = resources.files("skyward_etcd.dashboard").joinpath("page", name).read_bytes()
    return lambda _: Response(content, media_type=kind)


def _state(looking: Looking) -> Callable[[Request], Response]:
    return lambda _: JSONResponse(looking.state)


def _metrics(looking: Looking) -> Callable[[Request], Response]:
    if not importlib.util.find_spec("prometheus_client"):
        return lambda _: PlainTextResponse("pip install 'skyward-etcd[metrics]'\n", 404)
    from skyward_etcd.dashboard.exporting import CONTENT_TYPE, exported

    return lambda _: Response(exported(looking.state), headers={"content-type": CONTENT_TYPE})
