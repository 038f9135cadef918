"""Models over HTTP from a real server that cuts, lies, hides, redirects and trickles."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
from pathlib import Path

import pytest
from urllib3.util import Retry

from cache.sources.fetch import fetch, ignore_progress
from cache.sources.http import DEFAULT_RETRY, HttpSource, shown_url
from cache.store import ModelStore
from serve.core.errors import InvalidSpec, SourceUnreachable, StorageFull
from tests.cache.harness import leftovers, manifest_of, models, open_store, read_back
from tests.cache.server import Server, chunked, hang, reply, serving, slam, trickle

BODY = b"model bytes" * 1000
IMPATIENT = DEFAULT_RETRY.new(total=2, backoff_factor=0, retry_after_max=0)


def _source(retry: Retry = IMPATIENT, part_timeout_s: float = 60.0, read_timeout_s: float = 30.0) -> HttpSource:
    return HttpSource(retry, part_timeout_s=part_timeout_s, read_timeout_s=read_timeout_s)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_store(tmp_path, 8 << 20)


async def _get(server: Server, store: ModelStore, path: str = "/models/digits.onnx") -> dict[str, bytes]:
    manifest = await _source().fetch(server.url + path, store, ignore_progress)
    return read_back((await store.publish(manifest)).path)


async def _refused(url: str, store: ModelStore, source: HttpSource | None = None) -> str:
    with pytest.raises(SourceUnreachable) as caught:
        await (source or _source()).fetch(url, store, ignore_progress)
    assert store.used_bytes == 0
    return str(caught.value)


async def test_a_downloaded_model_keeps_its_file_name_and_tells_its_progress(store: ModelStore) -> None:
    seen: list[tuple[int, int | None]] = []
    async with serving(reply(BODY)) as server:
        manifest = await fetch(
            f"{server.url}/models/digits%20v1.onnx?token=1", store, lambda done, total: seen.append((done, total))
        )
        assert server.paths == ["/models/digits%20v1.onnx?token=1"]
    assert manifest == manifest_of({"digits v1.onnx": BODY})
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))


async def test_a_body_without_announced_length_is_taken(store: ModelStore) -> None:
    async with serving(chunked(b"one", b"two")) as server:
        assert await _get(server, store) == {"digits.onnx": b"onetwo"}


async def test_a_body_packed_on_the_way_is_unpacked(store: ModelStore) -> None:
    async with serving(reply(gzip.compress(BODY), content_encoding="gzip")) as server:
        assert await _get(server, store) == {"digits.onnx": BODY}


@pytest.mark.parametrize(
    "bad",
    [
        slam,
        reply(BODY[:100], length=len(BODY)),
        chunked(BODY[:100], whole=False),
        reply(status="503 Service Unavailable"),
        reply(status="429 Too Many Requests", retry_after="1000"),
    ],
    ids=["closed", "cut", "chunked-cut", "503", "429"],
)
async def test_what_may_pass_is_tried_again_and_then_given_up(store: ModelStore, bad: object) -> None:
    async with serving(bad, bad, reply(BODY)) as server:  # type: ignore[arg-type]
        assert await _get(server, store) == {"digits.onnx": BODY}
        assert len(server.requests) == 3
    await store.delete(models(store)[0].digest)
    async with serving(bad) as server:  # type: ignore[arg-type]
        sentence = await _refused(server.url + "/m.onnx", store)
        assert len(server.requests) == 3
        assert f"{server.url}/m.onnx" in sentence
        assert "deploy" in sentence


@pytest.mark.parametrize(
    ("status", "remedy"), [("404 Not Found", "check the address"), ("403 Forbidden", "credentials")]
)
async def test_what_cannot_pass_is_said_at_once(store: ModelStore, status: str, remedy: str) -> None:
    async with serving(reply(b"<html>", status=status)) as server:
        sentence = await _refused(server.url + "/m.onnx", store)
        assert len(server.requests) == 1
    assert status in sentence
    assert remedy in sentence


async def test_redirects_are_followed_and_the_first_name_stays(store: ModelStore) -> None:
    async with serving(reply(status="302 Found", location="/blob/123"), reply(BODY)) as server:
        assert await _get(server, store) == {"digits.onnx": BODY}
        assert server.paths == ["/models/digits.onnx", "/blob/123"]


async def test_redirects_in_circles_and_to_files_are_refused(store: ModelStore) -> None:
    async with serving(reply(status="302 Found", location="/again")) as server:
        await _refused(server.url + "/m.onnx", store)
        assert len(server.requests) == 6
    async with serving(reply(status="302 Found", location="file:///etc/passwd")) as server:
        await _refused(server.url + "/m.onnx", store)


async def test_a_server_that_only_trickles_is_given_up(store: ModelStore) -> None:
    source = _source(IMPATIENT.new(total=1), part_timeout_s=0.2)
    async with serving(trickle) as server:
        assert "too slowly" in await _refused(server.url + "/m.onnx", store, source)
        assert len(server.requests) == 2


async def test_a_server_that_never_answers_is_given_up(store: ModelStore) -> None:
    source = _source(IMPATIENT.new(total=0), read_timeout_s=0.2)
    async with serving(hang) as server:
        assert "timed out" in (await _refused(server.url + "/m.onnx", store, source)).lower()


async def test_a_download_that_is_cancelled_ends_and_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    async with serving(trickle) as server:
        begun = asyncio.Event()
        fetching = asyncio.ensure_future(_source().fetch(server.url + "/m.onnx", store, lambda *_: begun.set()))
        await begun.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert store.used_bytes == 0
    assert leftovers(tmp_path) == []


async def test_nobody_listening_and_an_unknown_host_are_said_with_the_url(store: ModelStore) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/m.onnx"
        assert url in await _refused(url, store)
    assert "http://no-such-host.invalid/m.onnx" in await _refused("http://no-such-host.invalid/m.onnx", store)


async def test_a_model_larger_than_the_store_is_refused_by_its_announced_length(tmp_path: Path) -> None:
    small = open_store(tmp_path, 1000)
    async with serving(reply(BODY, length=1 << 40)) as server:
        with pytest.raises(StorageFull, match=r"1\.0 TiB"):
            await _source().fetch(server.url + "/m.onnx", small, ignore_progress)
        assert len(server.requests) == 1
    async with serving(chunked(BODY)) as server:
        with pytest.raises(StorageFull):
            await _source().fetch(server.url + "/m.onnx", small, ignore_progress)
    assert small.used_bytes == 0


async def test_credentials_are_sent_and_neither_they_nor_the_query_are_repeated(store: ModelStore) -> None:
    async with serving(reply(status="401 Unauthorized")) as server:
        url = server.url.replace("http://", "http://me:s%20cret@") + "/m.onnx?signature=hidden"
        sentence = await _refused(url, store)
        assert base64.b64encode(b"me:s cret").decode() in server.requests[0]
    assert "cret" not in sentence
    assert "hidden" not in sentence
    async with serving(reply(status="302 Found", location="/x?signature=hidden")) as server:
        assert "hidden" not in await _refused(server.url + "/m.onnx?signature=hidden", store)
    assert "hidden" not in await _refused("http://me:hidden@no-such-host.invalid/m?signature=hidden", store)
    assert shown_url("https://me:x@host:1/a/b?c#d") == "https://host:1/a/b"


@pytest.mark.parametrize("url", ["http://host/", "http://host", "http://host/..", "http://[::1/m", "http://host/a%0Ab"])
async def test_a_url_that_names_no_file_is_refused_before_any_request(store: ModelStore, url: str) -> None:
    with pytest.raises(InvalidSpec):
        await fetch(url, store)
