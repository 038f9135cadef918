"""The conversation of one `serve deploy` with the platform: announce, upload what it lacks, follow its progress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, cast

from serve.cli.bundle import Bundle, ModelFile
from serve.cli.client import Client
from serve.cli.failure import CommandError, ExitCode, Refused, deploy_failed

_GRACE_S = 5.0
"""The platform gives up a publish at once when we leave; its own limit is for a network that does not tell it."""


class ProgressSink(Protocol):
    """Who shows progress to a person."""

    def step(self, step: str, message: str, done_bytes: int | None = None, total_bytes: int | None = None) -> None: ...


def publish(
    client: Client, document: dict[str, Any], bundle: Bundle | None, wait_s: float, sink: ProgressSink
) -> dict[str, Any]:
    """Return the `deployed` event. Raises CommandError.

    `document`: body of the deploy call without `model` where there is a bundle. The call is made again after uploads,
    until the platform lacks nothing.
    """
    uploaded: set[str] = set()
    while True:
        if bundle is not None:
            document = document | {"model": bundle.document()}
        try:
            return _follow(client.post_lines("/api/v1/deployments", document, wait=wait_s + _GRACE_S), sink)
        except Refused as refusal:
            missing = refusal.details.get("files")
            if bundle is None or refusal.code != "files_missing" or not isinstance(missing, list):
                raise _as_deploy_failure(refusal) from refusal
            # Files that were not announced yet may be there already: the platform says so when it knows their digests.
            lacking = [str(path) for path in missing if str(path) in bundle.files]
            added = [bundle.require(str(path)) for path in missing if str(path) not in bundle.files]
            files = {file.sha256: file for file in map(bundle.require, lacking) if file.sha256 not in uploaded}
            if not files and not added:
                raise _as_deploy_failure(refusal) from refusal
        for digest, file in files.items():
            _upload(client, file, sink)
            uploaded.add(digest)


def _follow(events: Iterator[dict[str, Any]], sink: ProgressSink) -> dict[str, Any]:
    for event in events:
        match event.get("event"):
            case "progress":
                sink.step(
                    str(event.get("step", "")),
                    str(event.get("message", "")),
                    event.get("done_bytes"),
                    event.get("total_bytes"),
                )
            case "deployed":
                return event
            case "failed":
                raise deploy_failed(event)
    raise deploy_failed(
        {"error": "the platform ended its answer before the deployment was done: see its log", "code": "publish_failed"}
    )


def _upload(client: Client, file: ModelFile, sink: ProgressSink) -> None:
    try:
        with file.source.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != file.size_bytes:
                raise _changed(file)
            sending = _Sending(stream, file, sink)
            client.put(f"/api/v1/blobs/{file.sha256}", cast("BinaryIO", sending), file.size_bytes)
    except OSError as error:
        raise CommandError(
            "source_changed",
            f"{file.source} can no longer be read ({error.strerror}): deploy again",
            exit_code=ExitCode.DEPLOY_FAILED,
        ) from error
    except Refused as refusal:
        raise _as_deploy_failure(refusal) from refusal


class _Sending:
    """A file on its way: tells the sink how far it is, and never gives more bytes than were announced."""

    def __init__(self, stream: BinaryIO, file: ModelFile, sink: ProgressSink) -> None:
        self._stream = stream
        self._file = file
        self._sink = sink
        self._done_bytes = 0

    def read(self, num_bytes: int = -1) -> bytes:
        left = self._file.size_bytes - self._done_bytes
        data = self._stream.read(left if num_bytes < 0 else min(num_bytes, left))
        if not data and left:
            raise _changed(self._file)
        self._done_bytes += len(data)
        self._sink.step("upload", f"upload {self._file.path}", self._done_bytes, self._file.size_bytes)
        return data


def _changed(file: ModelFile) -> CommandError:
    return CommandError(
        "source_changed",
        f"{file.source} changed while it was deployed: deploy again once it is written",
        exit_code=ExitCode.DEPLOY_FAILED,
    )


def _as_deploy_failure(refusal: Refused) -> CommandError:
    """Return the refusal with the exit code of a failed deploy, unless the caller was not let in at all."""
    if refusal.status in (401, 403) or refusal.code == "unexpected_answer":
        return refusal
    return deploy_failed(refusal.body())
