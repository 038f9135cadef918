"""What a replica says of its memory, held against what the kernel saw: a model's own code speaks there.

One absurd claim would otherwise refuse its revision for ever, take the place of others, and be kept in the registry.
"""

from __future__ import annotations

from serve.core.kernel import read_process

SLACK_BYTES = 16 << 20
"""How far the kernel's own figures may lie apart: it counts pages of a running process in batches, per core."""


def credible_bytes(pid: int | None, claimed_bytes: int) -> int:
    """Return the claim, cut to the most memory that the kernel ever saw the process have; 0 where it knows none.

    About 30 µs: for claims that are news. A process that exists on paper (its pid is below 0) is believed.
    """
    if pid is not None and pid < 0:
        return claimed_bytes
    figures = read_process(pid) if pid is not None else None
    if figures is None or not figures.peak_rss_bytes:
        return 0  # it has ended: what it says last is no news for those that follow
    return min(claimed_bytes, figures.peak_rss_bytes + SLACK_BYTES)
