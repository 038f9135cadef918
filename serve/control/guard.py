"""What every call of `/api` passes first and last: Host, token, request id, errors as JSON, and the count."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.core.errors import Forbidden, ServeError, Unauthorized
from serve.core.ids import RequestIds
from serve.core.metrics import Metrics

log = logging.getLogger(__name__)

REQUEST_ID = "serve.request_id"
"""Key in the ASGI scope of a control call."""

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware around the control API. `hosts`: names besides loopback under which callers may reach us."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str], ids: RequestIds, metrics: Metrics) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = LOOPBACK_HOSTS | {host.lower() for host in hosts}
        self._ids = ids
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # such as lifespan
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = self._ids.next()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-serve-request-id"] = request_id
            await send(message)

        try:
            self._check(Headers(scope=scope))
            await self._app(scope, receive, counted)
        except ClientDisconnect:
            log.info("a client left in the middle of its request", extra={"request_id": request_id})
        except ServeError as error:
            await error_response(error, request_id)(scope, receive, counted)
        except Exception:
            # Starlette has answered 500 already, or the connection breaks off in the middle of an answer.
            log.exception("a control call failed inside the platform", extra={"request_id": request_id})
        finally:
            self._metrics.control_requests.labels(f"{status // 100}xx" if status else "none").inc()

    def _check(self, headers: Headers) -> None:
        """A page in a browser may have our address under its own name (DNS rebinding): Host tells."""
        if _host_name(headers.get("host", "")) not in self._hosts:
            raise Forbidden(
                f"'{headers.get('host', '')}' is not a name of this platform; call it as 127.0.0.1, or by the "
                "name that it was started with (--host)"
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise Unauthorized(
                "the control API wants `Authorization: Bearer <token>`; the token is in the file `token` of the "
                "platform's home, or give it as SERVE_TOKEN"
            )


def error_response(error: ServeError, request_id: str) -> Response:
    """Return the error as every refusal looks."""
    headers = {"content-type": "application/json"} | error.headers()
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(error.body(request_id), default=str), error.status, headers)


def _host_name(host: str) -> str:
    """Return a Host header without its port: `[::1]:8000` → `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
