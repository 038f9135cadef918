"""OpenAPI 3.1 of the control API, from its route table and the pydantic models of its bodies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import Route

from serve.control.schemas import ANSWERS, LINES, PARAMETERS
from serve.core.version import version

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_REF = "#/components/schemas/{model}"

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error", "code", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "A sentence that names the remedy."},
        "code": {"type": "string", "description": "Stable; see docs/errors.md."},
        "request_id": {"type": "string"},
    },
}


class ApiRoute(Route):
    """A route and what its documentation needs besides the endpoint's docstring."""

    def __init__(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        *,
        body: type[BaseModel] | str | None = None,
        query: Sequence[str] = (),
        answer: str = "application/json",
        created: bool = False,
    ) -> None:
        super().__init__("/api/v1" + path, endpoint, methods=[method])
        if method == "GET":
            # Nobody needs HEAD here, and it would run the whole call.
            self.methods = {"GET"}
        self.method = method
        self.body = body
        """Model of a JSON body, or the content type of another one."""
        self.query = query
        self.answer = answer
        self.created = (201,) if created else ()
        """Statuses of success besides 200."""


def openapi(routes: Iterable[ApiRoute]) -> dict[str, Any]:
    """Return the document."""
    routes = list(routes)
    models = {route.body for route in routes if isinstance(route.body, type)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ServeZero control API", "version": version()},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": ERROR_SCHEMA},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: ApiRoute) -> dict[str, Any]:
    text = inspect.cleandoc(route.endpoint.__doc__ or "")
    summary, _, description = text.partition("\n\n")
    operation: dict[str, Any] = {"operationId": route.name, "summary": summary.replace("\n", " ")}
    if description:
        operation["description"] = description
    parameters = [_parameter(name, "path") for name in _PARAMETER.findall(route.path)]
    parameters += [_parameter(name, "query") for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if isinstance(route.body, str):
        operation["requestBody"] = {"required": True, "content": {route.body: {}}}
    elif route.body is not None:
        schema = {"$ref": _REF.format(model=route.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    done = {"description": "Done.", "content": {route.answer: _answer(route)}}
    operation["responses"] = dict.fromkeys(map(str, (200, *route.created)), done) | {
        "default": {"description": "Refused or failed.", "content": error}
    }
    return operation


def _answer(route: ApiRoute) -> dict[str, Any]:
    if route.name in LINES:  # OpenAPI 3.1 has no word for lines; 3.2 calls it so
        return {"itemSchema": LINES[route.name]}
    return {"schema": ANSWERS[route.name]} if route.name in ANSWERS else {}


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": PARAMETERS.get(name, {"type": "string"})}
