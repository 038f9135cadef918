"""Open Inference Protocol over REST: what `/v2` says of the server and of models. Nothing here wakes a model."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import unquote

from serve.core.errors import MethodNotAllowed, NotFound, UnknownModel, UnknownVersion
from serve.core.revision import Revision, Route, State
from serve.core.version import version

SERVER_NAME = "servezero"
EXTENSIONS = ["binary_tensor_data"]
_NOT_SERVING = frozenset({State.PUBLISHING, State.FAILED, State.DRAINING})


class ModelDirectory(Protocol):
    """What the activator knows of deployments."""

    @property
    def routes(self) -> dict[str, Route]: ...

    @property
    def is_draining(self) -> bool: ...

    def state_of(self, route: Route, revision: Revision | None) -> State: ...


class Target:
    """What a path under `/v2/models/NAME` names. `version` is None where the caller left it open."""

    __slots__ = ("name", "operation", "version")

    def __init__(self, name: str, version: str | None, operation: str) -> None:
        self.name = name
        self.version = version
        self.operation = operation
        """`infer`, `ready` or "" (metadata)."""


def infer_url(name: str) -> bytes:
    """Return the URL as most callers write it that infers with the deployment's current version."""
    return b"/v2/models/%b/infer" % name.encode()


def parse_path(path: str) -> Target | None:
    """Return the target of `/v2/models/NAME[/versions/V][/ready|/infer]`, or None for another path."""
    parts = path.split("/")
    if len(parts) < 4 or parts[1] != "v2" or parts[2] != "models" or not parts[3]:
        return None
    name, rest = unquote(parts[3]), parts[4:]
    version: str | None = None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    operation = rest[0] if rest else ""
    if len(rest) > 1 or operation not in {"", "ready", "infer"}:
        return None
    return Target(name, version, operation)


def resolve_route(directory: ModelDirectory, name: str) -> Route:
    """Return the deployment's route. Raise UnknownModel."""
    route = directory.routes.get(name)
    if route is None:
        raise UnknownModel(f"Request for unknown model: '{name}' is not found; `serve ls` lists the deployments")
    return route


def resolve_version(route: Route, version: str) -> Revision:
    """Return the retained revision that `version` names. Raise UnknownVersion."""
    revision = (
        route.revisions.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 10 else None
    )
    if revision is None:
        known = ", ".join(str(number) for number in sorted(route.revisions))
        raise UnknownVersion(
            f"Request for unknown model: '{route.name}' version {version[:40]} is not found; versions here: {known}"
        )
    return revision


def current(route: Route) -> Revision | None:
    """Return the revision that stands for the deployment in metadata: the one with the most weight, newest first."""
    if not route.weights:
        return None
    number = max(route.weights, key=lambda pair: (pair[1], pair[0]))[0]
    return route.revisions.get(number)


def describe(directory: ModelDirectory, method: str, path: str) -> tuple[int, dict[str, Any] | list[Any]]:
    """Return status and JSON body of a `/v2` path other than infer. Raise ServeError."""
    server = _describe_server(directory, path)
    if server is not None:
        _only(method, "GET", "HEAD")
        return server
    target = parse_path(path)
    if target is None:
        raise NotFound("Not Found: the protocol's paths are /v2, /v2/health/live, /v2/health/ready and /v2/models/NAME")
    if target.operation == "infer":
        _only(method, "POST")
    _only(method, "GET", "HEAD")
    route = resolve_route(directory, target.name)
    revision = resolve_version(route, target.version) if target.version is not None else current(route)
    state = directory.state_of(route, revision)
    if target.operation == "ready":
        is_ready = state not in _NOT_SERVING
        return 200 if is_ready else 503, {"name": route.name, "ready": is_ready, "state": state.value}
    return 200, metadata(route, revision, state)


def metadata(route: Route, revision: Revision | None, state: State) -> dict[str, Any]:
    """Return the protocol's model metadata, from the deployment's record: a cold model answers too."""
    body: dict[str, Any] = {"name": route.name, "versions": [str(number) for number in sorted(route.revisions)]}
    signature = revision.signature if revision is not None else None
    if signature is not None:
        body["platform"] = signature.platform
        for key, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            body[key] = [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
    else:
        body |= {"platform": "", "inputs": [], "outputs": []}
    body["parameters"] = {"state": state.value}
    return body


def _describe_server(directory: ModelDirectory, path: str) -> tuple[int, dict[str, Any] | list[Any]] | None:
    match path:
        case "/v2" | "/v2/":
            return 200, {"name": SERVER_NAME, "version": version(), "extensions": EXTENSIONS}
        case "/v2/health/live":
            return 200, {"live": True}
        case "/v2/health/ready":
            is_ready = not directory.is_draining
            return 200 if is_ready else 503, {"ready": is_ready}
        case "/v2/models" | "/v2/models/":
            return 200, {"models": sorted(directory.routes)}
    return None


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise MethodNotAllowed(f"Method Not Allowed: this path takes {' or '.join(allowed)}", allow=allowed)
