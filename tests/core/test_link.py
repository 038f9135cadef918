"""`FrameLink` over a real socket pair, on asyncio's loop and on uvloop."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from serve.core.frames import HEADER, Frame, FrameParser, Kind, pack
from serve.core.link import FrameLink

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def run_on_loop(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scenario, 20))

    return run_on_loop


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end, and the replica's."""
    ours, theirs = socket.socketpair() if request.param == "unix" else tcp_pair()
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


class Receiver:
    def __init__(self) -> None:
        self.reads: asyncio.Queue[list[Frame]] = asyncio.Queue()
        self.lost: list[str] = []
        self.is_lost = asyncio.Event()

    def frames_received(self, frames: list[Frame]) -> None:
        self.reads.put_nowait(frames)

    def link_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.is_lost.set()


class CountedWrites(socket.socket):
    """The same socket; notes every write."""

    writes: list[bytes]

    def send(self, data: Any, flags: int = 0, /) -> int:
        self.writes.append(bytes(data))
        return super().send(data, flags)


def counted(sock: socket.socket) -> CountedWrites:
    same = CountedWrites(sock.family, sock.type, sock.proto, fileno=sock.detach())
    same.writes = []
    return same


async def read_frames(theirs: socket.socket, count: int) -> list[bytes]:
    parser = FrameParser()
    found: list[bytes] = []
    while len(found) < count:
        data = await asyncio.to_thread(theirs.recv, 1 << 16)
        assert data, "closed too early"
        found += [bytes(frame.payload) for frame in parser.feed(data)]
    return found


Pair = tuple[socket.socket, socket.socket]


def test_all_frames_of_one_loop_turn_leave_in_one_write_and_in_order(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        sock = counted(ours)
        link = await FrameLink.open(sock, Receiver())
        for number in range(20):
            link.send(pack(Kind.BODY, number, str(number).encode()))
        assert sock.writes == []
        assert await read_frames(theirs, 20) == [str(number).encode() for number in range(20)]
        assert len(sock.writes) == 1
        link.send(pack(Kind.BODY, 1, b"next turn"))
        assert await read_frames(theirs, 1) == [b"next turn"]
        assert len(sock.writes) == 2
        link.close()

    run(scenario())


def test_frames_of_one_read_arrive_together(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        receiver = Receiver()
        link = await FrameLink.open(ours, receiver)
        theirs.sendall(pack(Kind.EVENT, 0, b"a") + pack(Kind.END, 7, b"b") + pack(Kind.END, 8, b"cut")[:-1])
        frames = await receiver.reads.get()
        assert [(frame.kind, frame.stream, bytes(frame.payload)) for frame in frames] == [
            (Kind.EVENT, 0, b"a"),
            (Kind.END, 7, b"b"),
        ]
        theirs.sendall(b"t")
        assert [bytes(frame.payload) for frame in await receiver.reads.get()] == [b"cut"]
        link.close()

    run(scenario())


def test_large_frames_pass_both_ways(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        receiver = Receiver()
        link = await FrameLink.open(ours, receiver)
        large = bytes(range(256)) * (1 << 14)
        link.send(pack(Kind.BODY, 1, large))
        assert await read_frames(theirs, 1) == [large]
        await asyncio.to_thread(theirs.sendall, pack(Kind.BODY, 1, large))
        [frame] = await receiver.reads.get()
        assert bytes(frame.payload) == large
        link.close()

    run(scenario())


def test_close_sends_what_is_queued_then_the_peer_reads_the_end(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        receiver = Receiver()
        link = await FrameLink.open(ours, receiver)
        link.send(pack(Kind.DRAIN))
        link.close()
        assert link.is_closed
        link.send(pack(Kind.BODY, 1, b"too late"))
        link.close()
        await receiver.is_lost.wait()
        data = b""
        while part := await asyncio.to_thread(theirs.recv, 100):
            data += part
        assert data == pack(Kind.DRAIN)
        assert receiver.lost == ["closed by the platform"]

    run(scenario())


def test_a_peer_that_closes_is_reported_once(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        receiver = Receiver()
        link = await FrameLink.open(ours, receiver)
        theirs.close()
        await receiver.is_lost.wait()
        assert link.is_closed
        link.send(pack(Kind.DRAIN))
        link.close()
        await asyncio.sleep(0)
        assert len(receiver.lost) == 1

    run(scenario())


def test_garbage_ends_the_link_and_nothing_of_it_is_delivered(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        receiver = Receiver()
        link = await FrameLink.open(ours, receiver)
        theirs.sendall(pack(Kind.EVENT, 0, b"good"))
        await receiver.reads.get()
        theirs.sendall(HEADER.pack(5, 77, 0, 0, 1) + b"wrong")
        await receiver.is_lost.wait()
        assert link.is_closed
        assert receiver.reads.empty()
        assert len(receiver.lost) == 1
        assert await asyncio.to_thread(_reads_end, theirs)

    run(scenario())


def _reads_end(theirs: socket.socket) -> bool:
    try:
        return theirs.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_receiver_can_be_replaced(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        ours, theirs = pair
        driver, pool = Receiver(), Receiver()
        link = await FrameLink.open(ours, driver)
        theirs.sendall(pack(Kind.EVENT, 0, b"ready"))
        await driver.reads.get()
        link.receiver = pool
        theirs.sendall(pack(Kind.END, 1, b"answer"))
        assert [bytes(frame.payload) for frame in await pool.reads.get()] == [b"answer"]
        assert driver.reads.empty()
        link.close()
        await pool.is_lost.wait()
        assert driver.lost == []

    run(scenario())
