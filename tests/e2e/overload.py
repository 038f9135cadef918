"""More callers than can be served. `python -m tests.e2e.overload [--seconds 60] [--times 10] [--idle 10000]`.

Ten times as many requests as a deployment can answer, then ten thousand connections on which nothing is asked.
Requests are sent when their time has come, whether others were answered or not, each on a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from tests.e2e.models import row, scripted
from tests.e2e.platforms import RunningPlatform

RUN_S = 0.05
CAPACITY_PER_S = 1 / RUN_S
QUEUE, QUEUE_BYTES, TIMEOUT_S = 20, 4 << 20, 10.0
PADDING_BYTES = 100_000


class Ended(NamedTuple):
    """One request; status 0 where the connection broke."""

    sent_s: float
    took_s: float
    status: int
    retry_after_s: int
    code: str


class Overload(NamedTuple):
    ended: list[Ended]
    rss_before_bytes: int
    rss_most_bytes: int

    @property
    def answered(self) -> list[Ended]:
        return [one for one in self.ended if one.status == 200]

    @property
    def refused(self) -> list[Ended]:
        return [one for one in self.ended if one.status == 503]

    @property
    def grown_bytes(self) -> int:
        return self.rss_most_bytes - self.rss_before_bytes


def deploy(platform: RunningPlatform, folder: Path) -> None:
    """Deploy a model that answers `CAPACITY_PER_S` requests a second, with a queue for a second of them."""
    settings = Path(scripted(folder, run_s=RUN_S, batchable=False))
    limits = {"concurrency": 1, "max": 1, "queue": QUEUE, "queue_bytes": QUEUE_BYTES, "timeout": TIMEOUT_S}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | limits))
    platform.deploy("-f", str(settings), "--name", "slow", "--idle", "10m")


async def overload(platform: RunningPlatform, seconds: float, times: float) -> Overload:
    """Send `times` the capacity for `seconds`; watch the platform's memory meanwhile."""
    body = json.dumps(row(1.0)).encode()
    body += b" " * (PADDING_BYTES - len(body))
    request = (
        b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        % len(body)
    ) + body
    process = psutil.Process(platform.process.pid)
    before_bytes = most_bytes = process.memory_info().rss
    began_s, calls = time.monotonic(), []
    parts = urlsplit(platform.info.url)
    for number in range(int(seconds * CAPACITY_PER_S * times)):
        delay_s = began_s + number / (CAPACITY_PER_S * times) - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        calls.append(asyncio.ensure_future(_call(str(parts.hostname), parts.port or 0, request)))
        if number % 10 == 0:
            most_bytes = max(most_bytes, process.memory_info().rss)
    return Overload(list(await asyncio.gather(*calls)), before_bytes, most_bytes)


async def _call(host: str, port: int, request: bytes) -> Ended:
    sent_s = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        status = int(first.split()[1])
    except (OSError, IndexError):
        return Ended(sent_s, time.monotonic() - sent_s, 0, 0, "")
    code = "" if status == 200 else json.loads(body)["code"]
    return Ended(sent_s, time.monotonic() - sent_s, status, int(headers.get("retry-after", "0")), code)


def report(found: Overload) -> str:
    """Return the figures as a page."""

    def quantiles(of: list[Ended]) -> str:
        taken = sorted(one.took_s * 1000 for one in of)
        if not taken:
            return "none"
        p99 = taken[int(len(taken) * 0.99)]
        return f"median {statistics.median(taken):.1f} ms, p99 {p99:.1f} ms, most {taken[-1]:.1f} ms"

    return "\n".join(
        [
            f"answers: {dict(Counter((one.status, one.code) for one in found.ended))}",
            f"answered: {quantiles(found.answered)}",
            f"refused: {quantiles(found.refused)}",
            f"Retry-After: {dict(Counter(one.retry_after_s for one in found.refused))}",
            f"memory: {found.rss_before_bytes >> 20} MiB before, {found.rss_most_bytes >> 20} MiB at most",
        ]
    )


async def rest(platform: RunningPlatform, count: int) -> str:
    """Hold `count` connections open and ask nothing on them; say what they cost, and what a call takes meanwhile."""
    parts = urlsplit(platform.info.url)
    process = psutil.Process(platform.process.pid)
    body = json.dumps(row(1.0)).encode()
    request = (
        b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    alone = [await _call(str(parts.hostname), parts.port or 0, request + body) for _ in range(20)]
    before_bytes = process.memory_info().rss
    held = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(count)]
    grown_bytes = process.memory_info().rss - before_bytes
    before_s = sum(process.cpu_times()[:2])
    await asyncio.sleep(5)
    cpu_s = sum(process.cpu_times()[:2]) - before_s
    among = [await _call(str(parts.hostname), parts.port or 0, request + body) for _ in range(20)]
    for _, writer in held:
        writer.close()
    median_ms = [statistics.median(one.took_s * 1000 for one in calls) for calls in (alone, among)]
    return (
        f"{count} idle connections: {grown_bytes / count / 1024:.1f} KiB each, {cpu_s / 5:.2%} of a core; a call takes "
        f"{median_ms[1]:.1f} ms among them, {median_ms[0]:.1f} ms without"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--idle", type=int, default=9_000, help="connections that rest; descriptors bound them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RunningPlatform(Path(folder) / "platform") as platform:
        deploy(platform, Path(folder) / "model")
        print(report(asyncio.run(overload(platform, given.seconds, given.times))))  # noqa: T201
        print(asyncio.run(rest(platform, given.idle)))  # noqa: T201


if __name__ == "__main__":
    main()
