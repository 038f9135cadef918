"""The calls that wait at a gate, in the order in which they may go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from activator.calls import Call


class Line:
    """Suspects, then everybody else in order of arrival. Owned by its gate. Joining and leaving cost the same anywhere.

    A suspect was inside a replica that died: it may be what killed it, so it must be alone with the next.
    """

    __slots__ = ("fresh", "suspects")

    def __init__(self) -> None:
        self.fresh: OrderedDict[Call, None] = OrderedDict()
        self.suspects: OrderedDict[Call, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.suspects) + len(self.fresh)

    def __iter__(self) -> Iterator[Call]:
        yield from self.suspects
        yield from self.fresh

    def join(self, call: Call) -> None:
        self.fresh[call] = None

    def put_back(self, suspects: Sequence[Call], never_sent: Sequence[Call]) -> None:
        """Let these go first, in this order. What their callers said of waiting was met when they went."""
        for calls in (never_sent, suspects):
            for call in reversed(calls):
                part = self.suspects if call.tries else self.fresh
                call.wait_until_ns = call.deadline_ns
                part[call] = None
                part.move_to_end(call, last=False)

    def leave(self, call: Call) -> bool:
        """Return False if the call does not wait here."""
        for part in (self.fresh, self.suspects):
            if call in part:
                del part[call]
                return True
        return False

    def take_all(self) -> list[Call]:
        calls = list(self)
        self.fresh.clear()
        self.suspects.clear()
        return calls

    def take_overdue(self, now_ns: int) -> list[Call]:
        """Take those that may not wait any longer."""
        calls = [call for call in self if call.wait_until_ns <= now_ns]
        for call in calls:
            self.leave(call)
        return calls
