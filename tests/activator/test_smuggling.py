"""Requests that two readers could read in two ways are read by none: 400, and the connection is closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.activator.harness import BODY, harness
from tests.activator.wire import CHUNKED, REQUEST, chunk, dial, head

START = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n"
END = b"0\r\n\r\n"
SHAPES = {
    "length and chunks": head(CHUNKED) + BODY,
    "chunks and length": START + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n" + END,
    "two lengths": head("content-length: 3") + BODY,
    "two equal lengths": head(f"content-length: {len(BODY)}") + BODY,
    "a list of lengths": START + b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": START + b"content-length: +3\r\n\r\nabc",
    "a negative length": START + b"content-length: -3\r\n\r\nabc",
    "a length in hex": START + b"content-length: 0x3\r\n\r\nabc",
    "no length at all": START + b"content-length: \r\n\r\nabc",
    "a length beyond 64 bits": START + b"content-length: 99999999999999999999999\r\n\r\nabc",
    "a space before the colon": START + b"content-length : 3\r\n\r\nabc",
    "a folded line": START + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "a folded length": START + b"content-length:\r\n 3\r\n\r\nabc",
    "NUL in a value": START + b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "NUL in a name": START + b"x\0: a\r\ncontent-length: 0\r\n\r\n",
    "lines that end in LF": START.replace(b"\r\n", b"\n") + b"content-length: 0\n\n",
    "a bare CR": START + b"x: a\ry: b\r\ncontent-length: 0\r\n\r\n",
    "identity": START + b"transfer-encoding: identity\r\n\r\n",
    "nearly chunked": START + b"transfer-encoding: xchunked\r\n\r\n" + END,
    "gzip, chunked": START + b"transfer-encoding: gzip, chunked\r\n\r\n" + END,
    "chunked, gzip": START + b"transfer-encoding: chunked, gzip\r\n\r\n" + END,
    "chunked twice": START + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + END,
    "chunks in HTTP/1.0": START.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n" + END,
    "two hosts": head("host: y", CHUNKED, length=None) + END,
    "a chunk of no size": START + b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n" + END,
    "a chunk size in C": START + b"transfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n" + END,
    "a chunk beyond 64 bits": START + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n" + END,
    "a chunk that is longer": START + b"transfer-encoding: chunked\r\n\r\n1\r\nxy\r\n" + END,
    "a chunk extension with NUL": START + b"transfer-encoding: chunked\r\n\r\n1;\0\r\nx\r\n" + END,
    "a chunk extension with LF": START + b"transfer-encoding: chunked\r\n\r\n1;a\nx\r\n" + END,
    "a length behind the chunks": START + b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
    "an upgrade, and a chunk of no size": head("connection: upgrade", "upgrade: h2c", CHUNKED, length=None) + b"zz\r\n",
    "HTTP/2.0": head(version="2.0") + BODY,
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\4\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_ambiguous_request_is_400_and_nothing_behind_it_is_read(tmp_path: Path, shape: str) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        wire.send(SHAPES[shape] + REQUEST)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.code) == (400, "bad_request")
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b""
        assert replica.inside.empty()


async def test_what_is_no_request_is_told_so_behind_the_answers_that_are_owed(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        wire.send(REQUEST * 2 + b"nonsense\r\n\r\n" + REQUEST)
        for _ in range(2):
            (await replica.next()).answer()
        answers = [await wire.answer() for _ in range(3)]
        assert [answer and answer.status for answer in answers] == [200, 200, 400]
        assert await wire.rest() == b""


async def test_extensions_and_trailers_of_chunks_are_read_over(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        extended = chunk(BODY).replace(b"\r\n", b';a=b;c="d"\r\n', 1)
        wire.send(head(CHUNKED, length=None) + extended + b"0\r\nx-sum: 1\r\n\r\n" + REQUEST)
        for _ in range(2):
            inside = await replica.next()
            assert inside.body == BODY
            inside.answer()
            answer = await wire.answer()
            assert answer is not None
            assert answer.status == 200


@pytest.mark.parametrize(
    "lines", [[f"x{number}: y" for number in range(10_000)], ["x: " + "y" * 80_000], ["a:"] * 300], ids=len
)
async def test_more_headers_than_anybody_needs_are_413(tmp_path: Path, lines: list[str]) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        it.deploy()
        sent = head(*lines) + BODY
        for start in range(0, len(sent), 4096):  # as a network brings them
            wire.send(sent[start : start + 4096])
            await it.turn()
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.code) == (413, "too_large")
        assert await wire.rest() == b""
