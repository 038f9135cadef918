"""`/api/v1`: the control API as an ASGI app."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.control import answers, views
from serve.control.answers import json_response
from serve.control.deployments import Deployments
from serve.control.guard import REQUEST_ID, Guard, error_response
from serve.control.json_lines import JsonLines, stream
from serve.control.openapi import ApiRoute, openapi
from serve.control.ports import Books, Forecaster
from serve.control.publish import Publication, Publisher
from serve.control.registry import Deployment
from serve.control.replica_logs import FOLLOW_INTERVAL_S, LogReader, drop_logs
from serve.control.uploads import Uploads
from serve.control.what_if import changed_spec
from serve.control.wire import DeployBody, RollbackBody, parse
from serve.core.errors import MethodNotAllowed, NotFound, PublishError, ServeError
from serve.core.home import Home
from serve.core.ids import RequestIds, check_name
from serve.core.metrics import Metrics
from serve.core.spec import json_schema

log = logging.getLogger(__name__)

DEPLOY_WAIT_S = 3600.0
"""Longest publish where the caller does not say `wait`."""


@dataclass(frozen=True, slots=True)
class Control:
    """What the API answers from."""

    deployments: Deployments
    publisher: Publisher
    books: Books
    forecaster: Forecaster
    home: Home
    platform: Callable[[], dict[str, Any]]
    """What `/platform` says besides deployments and store."""
    body_limit_bytes: int
    """Of samples."""


def control_app(control: Control, token: str, ids: RequestIds, metrics: Metrics, hosts: Iterable[str] = ()) -> ASGIApp:
    """Return the app for everything below `/api`. `hosts`: names besides loopback under which it may be called."""
    app = Starlette(
        routes=Api(control).routes(),
        exception_handlers={HTTPException: _routing_error, ServeError: _refusal, Exception: _internal_error},
    )
    app.router.redirect_slashes = False
    return Guard(app, token, hosts, ids, metrics)


class Api:
    """Endpoints: from requests to calls of the control plane, and back. Holds no state."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._deployments = control.deployments

    def routes(self) -> list[ApiRoute]:
        one = "/deployments/{name}"
        span = ("by", "since", "until")
        lines = "application/x-ndjson"
        uploads = Uploads(self._deployments.store)
        return [
            ApiRoute("POST", "/deployments", self.deploy, body=DeployBody, query=("wait",), answer=lines),
            ApiRoute("GET", "/deployments", self.list_deployments),
            ApiRoute("GET", one, self.status),
            ApiRoute("DELETE", one, self.delete),
            ApiRoute("GET", one + "/history", self.history),
            ApiRoute("POST", one + "/rollback", self.rollback, body=RollbackBody),
            ApiRoute("GET", one + "/explain", self.explain),
            ApiRoute("GET", one + "/what-if", self.what_if, query=("changes", "since", "until")),
            ApiRoute("GET", one + "/logs", self.logs, query=("follow", "request_id", "tail"), answer=lines),
            ApiRoute("PUT", "/blobs/{sha256}", uploads.put_blob, body="application/octet-stream", created=True),
            ApiRoute("GET", "/bill", self.bill, query=span),
            ApiRoute("GET", "/bill.csv", self.bill_csv, query=span, answer="text/csv"),
            ApiRoute("GET", "/bill/verify", self.verify_bill, query=("kernel",)),
            ApiRoute("GET", "/requests/{request_id}", self.request),
            ApiRoute("GET", "/platform", self.platform),
            ApiRoute("GET", "/schema", self.schema),
            ApiRoute("GET", "/openapi.json", self.openapi),
        ]

    async def deploy(self, request: Request) -> ASGIApp:
        """Publish a model under a name; the same name again is a new revision.

        Answers with JSON lines: `progress` events, then one `deployed` with the receipt, or `failed` with the error.
        422 with code `files_missing` and `files` comes before: upload those to /blobs, then post again. A client that
        leaves before the end cancels the publish. `wait`: seconds after which it is given up.
        """
        wait_s = answers.positive(request.query_params.get("wait"), "wait", DEPLOY_WAIT_S)
        body = parse(DeployBody, await answers.body(request, self._control.body_limit_bytes + answers.BODY_BYTES))

        async def respond(_scope: Scope, receive: Receive, send: Send) -> None:
            async with self._control.publisher.admit(body) as publication:
                await stream(receive, send, functools.partial(_publish, publication, wait_s))

        return respond

    async def list_deployments(self, _request: Request) -> Response:
        """List what is deployed."""
        return json_response(views.listing(self._deployments))

    async def status(self, request: Request) -> Response:
        """Tell how a deployment is: state, traffic, replicas, queue, cold starts, settings."""
        return json_response(views.status(self._deployments, self._find(request)))

    async def delete(self, request: Request) -> Response:
        """Delete a deployment with all its revisions; requests inside finish. Its bill stays."""
        name = request.path_params["name"]
        known = self._deployments.registry.deployments.get(name)
        await self._deployments.delete(name)
        if known is not None:
            folder = self._control.home.logs / "replicas" / name
            await asyncio.to_thread(drop_logs, folder, max(known.revisions))
        return json_response({"name": name, "deleted": True})

    async def history(self, request: Request) -> Response:
        """List the retained revisions, newest first, and what changed from one to the next."""
        return json_response(views.history(self._deployments, self._find(request)))

    async def rollback(self, request: Request) -> Response:
        """Give the traffic to a retained revision, with its settings."""
        name = request.path_params["name"]
        body = parse(RollbackBody, await answers.body(request, answers.BODY_BYTES) or b"{}")
        number = await self._deployments.rollback(name, body.revision)
        return json_response({"name": name, "revision": number})

    async def explain(self, request: Request) -> Response:
        """Say why replicas of a deployment started and stopped, oldest first."""
        return json_response(views.decisions(self._deployments, self._find(request).name))

    async def what_if(self, request: Request) -> Response:
        """Say what other settings of the serving revision would have cost, and who would have waited.

        Its recorded traffic between `since` and `until` is simulated as it was, and with `changes`: `idle=10s,max=4`.
        """
        revision = self._find(request).current.revision
        changed = changed_spec(revision.spec, request.query_params.get("changes", ""))
        since_ns, until_ns = answers.span(request)
        return json_response(await self._control.forecaster.forecast(revision, changed, since_ns, until_ns))

    async def logs(self, request: Request) -> ASGIApp:
        """Return what the replicas wrote, as JSON lines `{time?, replica, line}`.

        `tail`: how many of the last lines (100); `follow=1`: go on as new ones come; `request_id`: only lines with it.
        """
        query = request.query_params
        count = answers.whole(query.get("tail"), "tail", 100)
        follows = query.get("follow", "0") not in {"", "0", "false"}
        reader = LogReader(self._log_folder(request.path_params["name"]), query.get("request_id") or None)

        async def respond(_scope: Scope, receive: Receive, send: Send) -> None:
            await stream(receive, send, functools.partial(_read_logs, reader, count, follows))

        return respond

    async def bill(self, request: Request) -> Response:
        """Return what it cost, by deployment, revision, label:KEY, hour or day, between two points in time.

        `since`, `until`: ISO 8601 or seconds since 1970. Amounts are whole nano-units of the currency.
        """
        return json_response(await self._control.books.bill(*answers.bill_query(request)))

    async def bill_csv(self, request: Request) -> Response:
        """Return the rows of the bill as CSV."""
        text = await self._control.books.bill_csv(*answers.bill_query(request))
        return PlainTextResponse(text, media_type="text/csv")

    async def verify_bill(self, request: Request) -> Response:
        """Prove the ledger against the law of attribution and against the journal.

        `kernel=1`: with what the kernel counted of each replica beside what it is charged.
        """
        kernel = request.query_params.get("kernel", "0") not in {"", "0", "false"}
        return json_response(await self._control.books.verify(kernel=kernel))

    async def request(self, request: Request) -> Response:
        """Return one inference request's record with its cost."""
        request_id = request.path_params["request_id"]
        record = await self._control.books.request(request_id)
        if record is None:
            raise NotFound(f"the ledger has no request '{request_id}': refused requests have no record")
        return json_response(record)

    async def platform(self, _request: Request) -> Response:
        """Tell how the platform is."""
        store = self._deployments.store
        known = {
            "deployments": len(self._deployments.registry.deployments),
            "changing": self._deployments.claims,
            "store": {"used_bytes": store.used_bytes, "budget_bytes": store.budget_bytes},
        }
        return json_response(self._control.platform() | known)

    async def schema(self, _request: Request) -> Response:
        """Return the JSON schema of `serve.yaml`."""
        return json_response(json_schema())

    async def openapi(self, _request: Request) -> Response:
        """Return this API as OpenAPI 3.1."""
        return json_response(openapi(self.routes()))

    def _find(self, request: Request) -> Deployment:
        return views.find(self._deployments, request.path_params["name"])

    def _log_folder(self, name: str) -> Path:
        """A publish that failed has logs too, though there is no deployment. The name's rules keep us in the folder."""
        try:
            folder = self._control.home.logs / "replicas" / check_name(name)
        except ValueError as error:
            raise NotFound(str(error)) from None
        if not folder.is_dir():
            views.find(self._deployments, name)
        return folder


async def _publish(publication: Publication, wait_s: float, lines: JsonLines) -> None:
    def progress(step: str, message: str, *, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
        line: dict[str, Any] = {"event": "progress", "step": step, "message": message}
        sizes = {"done_bytes": done_bytes, "total_bytes": total_bytes}
        lines.put(line | {key: size for key, size in sizes.items() if size is not None})

    try:
        async with asyncio.timeout(wait_s):
            published = await publication.run(progress)
        lines.put({"event": "deployed", "unchanged": published.is_unchanged, "receipt": published.receipt})
    except ServeError as error:
        lines.put({"event": "failed"} | error.body())
    except TimeoutError:
        late = PublishError(f"not published within {wait_s:g} s; allow more time with --wait, or see `serve logs`")
        lines.put({"event": "failed"} | late.body())
    except Exception:
        log.exception("a publish failed inside the platform")
        lines.put({"event": "failed"} | ServeError("internal error: the platform's log tells more").body())


async def _read_logs(reader: LogReader, count: int, follows: bool, lines: JsonLines) -> None:
    for line in await asyncio.to_thread(reader.tail, count):
        lines.put(line)
    await lines.flush()
    # Replicas write their files themselves and the standard library has no inotify, so the files are looked at again
    # and again: only while somebody follows, who is also the one who waits.
    while follows:
        await asyncio.sleep(FOLLOW_INTERVAL_S)
        for line in await asyncio.to_thread(reader.more):
            lines.put(line)
        await lines.flush()


def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return _refusal(request, NotFound("there is nothing at this address; /api/v1/openapi.json lists what there is"))
    # Starlette names the methods of the first route only, and a path has one route per method here.
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    allow = tuple(sorted(method for route in routes for method in route.methods))
    sentence = f"{request.method} does not work at this address, which takes {', '.join(allow)}"
    return _refusal(request, MethodNotAllowed(sentence, allow=allow))


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return error_response(error, request.scope[REQUEST_ID])


def _internal_error(request: Request, _error: Exception) -> Response:
    request_id = request.scope[REQUEST_ID]
    return error_response(
        ServeError(f"internal error: the platform's log tells more about request {request_id}"), request_id
    )
