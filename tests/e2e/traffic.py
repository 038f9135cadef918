"""A steady trickle of requests in the background of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.platforms import RunningPlatform
from tests.e2e.processes import wait_until


@dataclass
class Traffic:
    """Answers and transport errors so far. Written by its threads, read by the test."""

    answers: list[httpx.Response] = field(default_factory=list)
    errors: list[httpx.TransportError] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def statuses(self) -> set[int]:
        return {answer.status_code for answer in self.answers}

    @property
    def revisions(self) -> list[str]:
        return [answer.headers.get("x-serve-revision", "") for answer in self.answers]

    def wait_for(self, count: int) -> None:
        """Return once `count` further requests have ended."""
        goal = len(self.answers) + len(self.errors) + count
        wait_until(lambda: len(self.answers) + len(self.errors) >= goal, f"{count} more requests")


@contextmanager
def trickle(
    platform: RunningPlatform, path: str, body: Any, *, threads: int = 2, pause_s: float = 0.01
) -> Iterator[Traffic]:
    """Send `body` again and again until the block ends."""
    traffic = Traffic()
    url = f"{platform.info.url}/v2/models/{path}/infer"

    def send() -> None:
        with httpx.Client(timeout=30.0) as client:
            while not traffic.stopping.wait(pause_s):
                try:
                    traffic.answers.append(client.post(url, json=body))
                except httpx.TransportError as error:
                    traffic.errors.append(error)

    workers = [threading.Thread(target=send) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield traffic
    finally:
        traffic.stopping.set()
        for worker in workers:
            worker.join(40)
