"""What a front door grants its clients: how many, and for how long nothing may come or be taken."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 64 * 1024
"""A head, or what follows a chunked body, that is longer and came in several reads, is refused: it would be kept."""
HEADERS = 256
"""Most header lines of one request."""
PIPELINED = 64
"""Most requests that may wait on one connection behind the one that is being answered."""
LINGER_S = 1.0
"""How long a connection is still read, and all of it dropped, behind a last answer: closed at once, a client that is
still sending would be told that its connection was reset, and never see the answer."""
SPARE = 64
"""Connections beyond the most that are wanted which get an answer instead of a reset."""


@dataclass(frozen=True, slots=True)
class Limits:
    """For every connection of one door."""

    connections: int = 10_000
    """Most at once. One more, and those that wait longest without a request are closed; else it is answered 503."""
    head_s: float = 20.0
    """From the first byte of a head to its last."""
    stall_s: float = 20.0
    """Without a byte of a body that should come, or without any of an answer being taken."""
    keep_alive_s: float = 75.0
    """Without a request."""
    drain_grace_s: float = 3.0
    """After the order to stop: until then requests must be wholly there."""
    unread_bytes: int = 256 << 20
    """Most bytes of answers that all clients together may leave unread. Beyond, those that began first are cut."""


def within(descriptors: int, wanted: int) -> int:
    """Return how many connections there may be where a process may open `descriptors`: replicas and files need some."""
    return max(1, min(wanted, descriptors - SPARE - min(1024, descriptors // 2)))
