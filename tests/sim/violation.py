"""A promise that was broken."""

from __future__ import annotations


class Violation(AssertionError):
    """The sentence says which."""


def must(holds: object, sentence: str) -> None:
    if not holds:
        raise Violation(sentence)
