"""The command's HTTP client. urllib3 is imported at the first call.

Retried: only idempotent calls, only where nobody listens yet (a local platform that is just starting).
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote

from serve.cli.failure import CommandError, ExitCode, Refused

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse
    from urllib3.util import Retry

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 60.0
_REFUSED_RETRIES = 5
_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
_READ_BYTES = 1 << 16
ANSWER_BYTES = 64 << 20
INFERENCE_BYTES = 1 << 30
LINE_BYTES = 16 << 20
"""Most bytes of an answer of the control API, of an inference, of one line of an answer in lines."""


class Answer(NamedTuple):
    """A whole response. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Talks to one platform. `starting`: connections may be refused for a moment, so idempotent calls try again.

    `timeout_s` bounds each wait for bytes; calls that may wait for longer take None and the caller sets a `deadline`.
    """

    def __init__(
        self, base_url: str, token: str | None, *, starting: bool = False, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = token
        self._starting = starting
        self._pool: Any = None

    def patient(self, timeout_s: float) -> Client:
        """Return a client of the same platform for answers that take as long as there is much to read."""
        return Client(self.base_url, self._token, starting=self._starting, timeout_s=timeout_s)

    def get(self, path: str, **fields: Any) -> dict[str, Any]:
        """Return the JSON object that answers a GET. `fields`: query parameters, without None. Raises CommandError."""
        return self._json("GET", path, fields)

    def delete(self, path: str) -> dict[str, Any]:
        return self._json("DELETE", path, {})

    def get_text(self, path: str, **fields: Any) -> str:
        with self._open("GET", path, fields=fields) as response:
            try:
                return self._whole(response).decode()
            except UnicodeDecodeError as error:
                raise _not_a_platform(self.base_url, "bytes that are no text") from error

    def post(self, path: str, body: bytes) -> Answer:
        """Return the whole answer of a POST. Raises Refused for other than 2xx. Bound the time with `deadline`."""
        with self._open("POST", path, body=body, waits=True) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, self._whole(response, INFERENCE_BYTES))

    def post_lines(self, path: str, document: dict[str, Any], **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines that answer a POST, as they come. The caller bounds the time with `deadline`."""
        body = json.dumps(document).encode()
        with self._open("POST", path, fields=fields, body=body, waits=True) as response:
            yield from _json_lines(response, self.base_url)

    def get_lines(self, path: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines that answer a GET, as they come, for as long as the platform sends."""
        with self._open("GET", path, fields=fields, waits=True) as response:
            yield from _json_lines(response, self.base_url)

    def put(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        """Send `size_bytes` bytes of `stream`."""
        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        with self._open("PUT", path, body=stream, headers=headers) as response:
            response.drain_conn()

    def _json(self, method: str, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        with self._open(method, path, fields=fields) as response:
            return _parse(self._whole(response), self.base_url)

    def _whole(self, response: BaseHTTPResponse, limit_bytes: int = ANSWER_BYTES) -> bytes:
        data = response.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise _not_a_platform(self.base_url, f"more than {limit_bytes} bytes")
        return data

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        *,
        fields: dict[str, Any] | None = None,
        body: bytes | BinaryIO | None = None,
        headers: dict[str, str] | None = None,
        waits: bool = False,
    ) -> Iterator[BaseHTTPResponse]:
        import urllib3

        if self._pool is None:
            self._pool = urllib3.PoolManager()
        sent = {"accept": "application/json", "user-agent": "serve"}
        if self._token:
            sent["authorization"] = f"Bearer {self._token}"
        if isinstance(body, bytes):
            sent["content-type"] = "application/json"
        with self._network_errors():
            response = self._pool.request(
                method,
                self.base_url + path + _query(fields or {}),
                body=body,
                headers=sent | (headers or {}),
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=None if waits else self._timeout_s),
                retries=self._retries(method),
                redirect=False,
                preload_content=False,
            )
            try:
                if not 200 <= response.status < 300:
                    raise Refused(response.status, _error_body(response, self.base_url))
                yield response
            finally:
                response.close()

    def _retries(self, method: str) -> Retry:
        import urllib3

        connect = _REFUSED_RETRIES if self._starting and method in _IDEMPOTENT else 0
        return urllib3.Retry(total=connect, connect=connect, read=0, redirect=0, status=0, backoff_factor=0.05)

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Turn what urllib3 raises into sentences."""
        from urllib3 import exceptions

        try:
            yield
        except exceptions.MaxRetryError as error:
            raise self._unreachable(error.reason or error) from error
        except exceptions.ReadTimeoutError as error:
            raise CommandError(
                "wait_timeout", f"{self.base_url} did not answer in time; see `logs/platform.log` in its home"
            ) from error
        except exceptions.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, reason: object) -> CommandError:
        return CommandError(
            "unreachable",
            f"cannot reach the platform at {self.base_url} ({_plain(reason)}); start it with `serve up --detach`, "
            "or correct SERVE_URL or --url",
        )


@contextlib.contextmanager
def deadline(wait_s: float | None, sentence: str) -> Iterator[None]:
    """End the block with CommandError (exit code 6) after `wait_s` seconds, whatever it waits for.

    A timer signal rather than socket timeouts: those start again with every byte. Main thread only.
    """
    if wait_s is None:
        yield
        return

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise CommandError("wait_timeout", sentence, exit_code=ExitCode.TIMEOUT)

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, max(wait_s, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def segment(text: str) -> str:
    """Return `text` as one segment of a URL's path. Arguments that are no text travel as the bytes they were."""
    return quote(text, safe="", errors="surrogateescape")


def _query(fields: dict[str, Any]) -> str:
    pairs = [f"{quote(key)}={segment(str(value))}" for key, value in fields.items() if value is not None]
    return "?" + "&".join(pairs) if pairs else ""


def _json_lines(response: BaseHTTPResponse, base_url: str) -> Iterator[dict[str, Any]]:
    rest = b""
    while chunk := response.read1(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _parse(line, base_url)
        if len(rest) > LINE_BYTES:
            raise _not_a_platform(base_url, f"a line of more than {LINE_BYTES} bytes")
    if rest.strip():
        yield _parse(rest, base_url)


def _parse(data: bytes, base_url: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _not_a_platform(base_url, "something that is not JSON") from error
    if not isinstance(document, dict):
        raise _not_a_platform(base_url, "JSON that is no object")
    return document


def _not_a_platform(base_url: str, what: str) -> CommandError:
    return CommandError("unexpected_answer", f"{base_url} answered {what}: is it a ServeZero platform?")


def _error_body(response: BaseHTTPResponse, base_url: str) -> dict[str, Any]:
    """Return the platform's error, or one that says that somebody else answered."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(response.read(ANSWER_BYTES))
        if isinstance(body, dict) and "error" in body:
            return body
    return {
        "error": f"{base_url} answered HTTP status {response.status} without a reason: is it a ServeZero platform?",
        "code": "unexpected_answer",
    }


def _plain(reason: object) -> str:
    """Return the cause without urllib3's object addresses."""
    return str(reason).rsplit(": ", 1)[-1]
