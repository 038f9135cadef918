"""What a request on paper asks of a replica: it stands in its body, where a real one has tensors."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Effect(StrEnum):
    """What running the request does."""

    ANSWER = "answer"
    ERROR = "error"
    """The model fails on it: status 500."""
    POISON = "poison"
    """It kills the process."""
    HANG = "hang"
    """The run never ends."""


class Work(NamedTuple):
    """One request's part in a run."""

    run_us: int = 150_000
    """How long the run takes with this request in it, at least."""
    rows: int = 1
    effect: Effect = Effect.ANSWER

    def body(self, size_bytes: int = 0) -> bytes:
        """Return a request body of at least `size_bytes`."""
        return f"{self.run_us} {self.rows} {self.effect}".encode().ljust(size_bytes)

    @classmethod
    def of(cls, body: bytes) -> Work:
        """Return what a body asks for. One that is none of ours, such as a probe's, is the least there is."""
        parts = body.split()
        if len(parts) != 3 or not parts[0].isdigit():
            return cls()
        return cls(int(parts[0]), int(parts[1]), Effect(parts[2].decode()))
