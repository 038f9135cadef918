"""`Lifecycle`: no task outlives its block, none dies unheard."""

import asyncio
import logging

import pytest

from serve.core.lifecycle import Lifecycle


class Bystander:
    """A task that waits for ever and notes how it ended."""

    def __init__(self) -> None:
        self.ended = ""

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


async def die() -> None:
    raise OSError("disk full")


async def test_a_task_that_dies_ends_all_others_and_the_block_loudly(caplog: pytest.LogCaptureFixture) -> None:
    bystander = Bystander()

    async def process() -> None:
        async with Lifecycle() as lifecycle:
            lifecycle.spawn("bystander", bystander.run())
            lifecycle.spawn("journal", die())
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await process()
    assert caught.group_contains(OSError, match="disk full")
    assert bystander.ended == "cancelled"
    [record] = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "task journal died" in record.getMessage()
    assert record.exc_info


async def test_stop_ends_every_task_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    bystanders = [Bystander() for _ in range(3)]
    async with Lifecycle() as lifecycle:
        for number, bystander in enumerate(bystanders):
            lifecycle.spawn(f"bystander-{number}", bystander.run())
        await asyncio.sleep(0)
        lifecycle.stop()
    assert [bystander.ended for bystander in bystanders] == ["cancelled"] * 3
    assert caplog.records == []


async def test_the_block_waits_for_tasks_that_end_by_themselves() -> None:
    done: list[int] = []

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        done.append(number)
        return number

    async with Lifecycle() as lifecycle:
        task = lifecycle.spawn("one", work(1))
        lifecycle.spawn("two", work(2))
    assert sorted(done) == [1, 2]
    assert task.result() == 1
    assert task.get_name() == "one"


async def test_an_error_in_the_block_ends_its_tasks_and_comes_through_as_it_is() -> None:
    bystander = Bystander()

    async def process() -> None:
        async with Lifecycle() as lifecycle:
            lifecycle.spawn("bystander", bystander.run())
            await asyncio.sleep(0)
            raise ValueError("no port")

    with pytest.raises(ValueError, match="no port"):
        await process()
    assert bystander.ended == "cancelled"


async def test_cancelling_the_owner_ends_its_tasks() -> None:
    bystander, entered = Bystander(), asyncio.Event()

    async def own() -> None:
        async with Lifecycle() as lifecycle:
            lifecycle.spawn("bystander", bystander.run())
            entered.set()
            await asyncio.Event().wait()

    owner = asyncio.ensure_future(own())
    await entered.wait()
    await asyncio.sleep(0)
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert bystander.ended == "cancelled"


async def test_a_task_may_stop_the_lifecycle_it_lives_in() -> None:
    bystander = Bystander()
    async with Lifecycle() as lifecycle:

        async def on_signal() -> None:
            await asyncio.sleep(0)
            lifecycle.stop()

        lifecycle.spawn("bystander", bystander.run())
        lifecycle.spawn("signal", on_signal())
    assert bystander.ended == "cancelled"


async def test_a_task_spawned_after_stop_does_not_keep_the_block_open() -> None:
    async with asyncio.timeout(5), Lifecycle() as lifecycle:
        lifecycle.stop()
        lifecycle.spawn("late", asyncio.Event().wait())
