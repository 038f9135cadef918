"""A leak is told from noise."""

from __future__ import annotations

import random

from benchmarks.flatness import FLAT, Series, growth, is_flat

CHANCE = random.Random(1)


def noisy(per_minute: float, *, minutes: int = 20) -> list[tuple[float, int]]:
    """Return memory around 100 MiB in KiB that grows: noise of 1 MiB, a spike of 50 MiB now and then."""
    points = []
    for at_s in range(0, 60 * minutes, 2):
        spike = 50_000 if CHANCE.random() < 0.05 else 0
        points.append((float(at_s), round(100_000 + CHANCE.gauss(0, 1000) + spike + per_minute * at_s / 60)))
    return points


def test_noise_and_spikes_are_no_leak() -> None:
    assert is_flat("memory", noisy(0))


def test_a_leak_of_a_fifth_of_a_mebibyte_a_minute_is_found_below_noise_and_spikes() -> None:
    points = noisy(200)
    assert not is_flat("memory", points)
    assert 3000 < growth(points) < 5000


def test_one_descriptor_lost_every_two_minutes_is_found() -> None:
    assert not is_flat("descriptors", [(float(at_s), 40 + at_s // 120) for at_s in range(0, 1200, 2)])
    assert is_flat("descriptors", [(float(at_s), 40 + at_s % 3) for at_s in range(0, 1200, 2)])


def test_what_grows_during_the_warm_up_is_not_judged() -> None:
    samples = Series()
    for at_s in range(0, 600, 2):
        samples.add("memory", float(at_s), min(at_s * 1000, round(600 * FLAT.begin) * 1000))
    assert growth(samples.judged("memory")) == 0


def test_what_was_never_sampled_is_not_flat() -> None:
    assert not is_flat("memory", [])
