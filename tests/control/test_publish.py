"""Publishing: deployed means answered; what fails or is cancelled leaves nothing; what is committed stays."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from activator.router import ProbeResult
from serve.core.errors import (
    Conflict,
    Draining,
    FilesMissing,
    ModelInvalid,
    PublishError,
    ReplicaLost,
    SampleFailed,
    SourceUnreachable,
    StorageFull,
)
from serve.core.ids import RevisionKey
from serve.core.revision import Revision, State
from tests.control.bench import Bench, at_step, bench, deploy_body, ignore_progress, manifest, until
from tests.control.fakes import MS, fine, ready, refused

SAMPLE = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def key(number: int, name: str = "digits") -> RevisionKey:
    return RevisionKey(name, number)


def is_pinned(platform: Bench, content: bytes = b"model") -> bool:
    return bool(platform.store._index._pins.get(manifest(content).digest))


def assert_nothing_of(platform: Bench, number: int, content: bytes = b"model") -> None:
    """Neither scaler, router, registry nor store hold anything for the revision."""
    assert key(number) not in platform.scaler.known
    assert key(number) not in platform.scaler.held
    assert key(number) not in platform.router.revisions
    assert not is_pinned(platform, content)
    deployment = platform.plane.deployments.registry.deployments.get("digits")
    assert deployment is None or number not in deployment.revisions
    assert platform.plane.deployments.claims == {}


def assert_deployed(platform: Bench) -> None:
    assert platform.scaler.reachable == {key(1): True}
    assert platform.router.routes["digits"].weights == ((1, 1),)
    assert platform.scaler.held == set()
    assert is_pinned(platform)
    assert platform.plane.deployments.claims == {}


async def test_a_deployed_model_has_answered_takes_the_traffic_and_is_kept(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        published = await platform.deploy()
        assert published.receipt["verified"]
        assert published.receipt["cold_start"] == {"total_ms": 9.0, "phases": {"spawn": 2.0, "load": 5.0, "infer": 1.0}}
        assert published.receipt["warm_ms"] == {"p50": 1.0, "n": 20}
        assert len(platform.router.probes) == 21
        route = platform.router.routes["digits"]
        assert (route.state, route.weights, list(route.revisions)) == (State.COLD, ((1, 1),), [1])
        assert route.revisions[1].signature is not None
        assert route.revisions[1] == platform.scaler.known[key(1)] == platform.router.revisions[key(1)]
        assert platform.scaler.reachable == {key(1): True}
        assert platform.scaler.held == set()
        assert platform.scaler.removed == []
        assert is_pinned(platform)


async def test_after_a_restart_a_start_is_expected_to_take_what_it_took_at_publishing(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        published = await platform.deploy()
        assert platform.scaler.start_s == {key(1): None}
    async with bench(tmp_path) as platform:
        assert platform.scaler.start_s == {key(1): published.receipt["cold_start"]["total_ms"] / 1000}


async def test_callers_hear_publishing_until_the_first_revision_answered(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy()
        assert platform.router.states == [("digits", State.PUBLISHING), ("digits", State.COLD)]


async def test_a_second_revision_replaces_the_first_which_stays_to_go_back_to(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy(idle=30)
        published = await platform.deploy(idle=60)
        assert published.receipt["revision"] == 2
        assert platform.router.routes["digits"].weights == ((2, 1),)
        assert sorted(platform.router.routes["digits"].revisions) == [1, 2]
        assert platform.scaler.reachable == {key(1): False, key(2): True}


async def test_the_same_again_is_unchanged_and_starts_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        first = await platform.deploy()
        again = await platform.deploy()
        assert again.is_unchanged
        assert again.receipt == first.receipt
        assert platform.scaler.warmed == [key(1)]
    async with bench(tmp_path) as platform:
        assert (await platform.deploy()).is_unchanged


async def test_other_content_or_settings_are_a_new_revision(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy()
        assert not (await platform.deploy(b"other")).is_unchanged
        assert not (await platform.deploy(b"other", labels={"team": "a"})).is_unchanged


async def test_a_model_that_cannot_start_leaves_the_running_revision_as_it_was(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy()
        before = platform.router.routes["digits"]
        platform.scaler.refuse = ModelInvalid("the graph has an unknown operator")
        with pytest.raises(ModelInvalid, match="unknown operator"):
            await platform.deploy(b"broken")
        assert platform.router.routes["digits"] is before
        assert platform.scaler.reachable[key(1)]
        assert_nothing_of(platform, 2, b"broken")


async def test_a_first_publish_that_fails_leaves_no_name(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.scaler.refuse = ModelInvalid("no")
        with pytest.raises(ModelInvalid):
            await platform.deploy()
        assert platform.router.routes == {}
        assert_nothing_of(platform, 1)


async def test_a_failed_number_is_not_given_again(tmp_path: Path) -> None:
    """Its replicas have logs and costs under that number."""
    async with bench(tmp_path) as platform:
        platform.scaler.refuse = ModelInvalid("no")
        with pytest.raises(ModelInvalid):
            await platform.deploy()
        platform.scaler.refuse = None
        assert (await platform.deploy()).receipt["revision"] == 2


async def test_unknown_dimensions_are_tried_until_one_size_runs(tmp_path: Path) -> None:
    def only_sixteen(_revision: Revision, request: dict[str, Any]) -> ProbeResult:
        return fine() if request["inputs"][0]["shape"] == [1, 16] else refused()

    async with bench(tmp_path) as platform:
        platform.scaler.ready = ready(shape=(-1, -1))
        platform.router.answer = only_sixteen
        published = await platform.deploy()
        assert published.receipt["verified"]
        assert [probe["inputs"][0]["shape"][1] for probe in platform.router.probes[:4]] == [1, 8, 16, 16]
        assert '"shape":[1,16]' in published.receipt["curl"]


async def test_a_model_that_answers_no_size_is_deployed_unverified_with_a_warning(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.router.answer = lambda _revision, _request: refused()
        published = await platform.deploy()
        assert published.receipt["verified"] is False
        assert published.receipt["warm_ms"] is None
        assert "--sample" in published.receipt["warning"]
        assert platform.router.routes["digits"].weights == ((1, 1),)
        platform.router.answer = lambda _revision, _request: fine()
        verified = await platform.deploy(sample=SAMPLE)
        assert not verified.is_unchanged
        assert verified.receipt["verified"]


async def test_a_given_sample_is_what_is_asked_and_shown(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        published = await platform.deploy(sample=SAMPLE)
        assert all(probe == SAMPLE for probe in platform.router.probes)
        assert '"data":[1,2,3,4]' in published.receipt["curl"]


async def test_a_given_sample_that_fails_fails_the_publish_with_the_models_sentence(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.router.answer = lambda _revision, _request: refused("input 'x' has shape [1,3], expected [1,4]")
        with pytest.raises(SampleFailed, match=r"expected \[1,4\]"):
            await platform.deploy(sample=SAMPLE)
        assert_nothing_of(platform, 1)


async def test_a_replica_that_dies_over_the_sample_fails_the_publish(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.router.loses = ReplicaLost("the replica ended with signal 11")
        with pytest.raises(SampleFailed, match="signal 11"):
            await platform.deploy()
        assert_nothing_of(platform, 1)


async def test_a_model_that_answers_once_but_not_again_is_not_deployed(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.router.answer = lambda _revision, _request: fine() if len(platform.router.probes) < 3 else refused()
        with pytest.raises(SampleFailed, match="not again"):
            await platform.deploy()
        assert_nothing_of(platform, 1)


async def test_large_samples_lie_in_a_file_beside_the_curl(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.scaler.ready = ready(shape=(-1, 3000))
        published = await platform.deploy()
        file = platform.home.run / "samples" / "digits.json"
        assert f"@{file}" in published.receipt["curl"]
        assert b'"shape":[1,3000]' in file.read_bytes()
        platform.scaler.ready = ready(shape=(-1, 9000))
        published = await platform.deploy(idle=5)
        assert "digits.bin" in published.receipt["curl"]


def threaded(one_ns: int, all_ns: int) -> Any:
    return lambda revision, _request: fine(one_ns if revision.threads == 1 else all_ns)


async def test_threads_that_pay_are_kept(tmp_path: Path) -> None:
    async with bench(tmp_path, cores=4) as platform:
        platform.router.answer = threaded(10 * MS, 4 * MS)
        published = await platform.deploy()
        assert published.receipt["threads"] == 4
        assert published.receipt["warm_ms"]["p50"] == 4.0
        assert platform.scaler.known[key(1)].threads == 4
        assert platform.scaler.warmed == [key(1), key(1)]
        assert platform.scaler.removed == [key(1)]


async def test_threads_that_do_not_pay_are_given_back(tmp_path: Path) -> None:
    async with bench(tmp_path, cores=4) as platform:
        platform.router.answer = threaded(10 * MS, 9 * MS)
        published = await platform.deploy()
        assert published.receipt["threads"] == 1
        assert published.receipt["warm_ms"]["p50"] == 10.0
        assert platform.scaler.known[key(1)].threads == 1
        assert platform.scaler.reachable == {key(1): True}


@pytest.mark.parametrize(("spec", "one_ns"), [({}, 4 * MS), ({"threads": 1}, 50 * MS), ({"threads": 3}, 50 * MS)])
async def test_threads_are_not_tried_for_fast_models_or_where_they_are_given(
    tmp_path: Path, spec: dict[str, Any], one_ns: int
) -> None:
    async with bench(tmp_path, cores=4) as platform:
        platform.router.answer = threaded(one_ns, one_ns)
        published = await platform.deploy(**spec)
        assert published.receipt["threads"] == spec.get("threads", 1)
        assert platform.scaler.warmed == [key(1)]


async def test_no_room_for_the_threaded_candidate_is_no_failure(tmp_path: Path) -> None:
    async with bench(tmp_path, cores=4) as platform:

        def full_after_the_first(_key: RevisionKey) -> None:
            platform.scaler.refuse = PublishError("does not fit into memory")

        platform.scaler.learns = full_after_the_first
        platform.router.answer = threaded(10 * MS, MS)
        assert (await platform.deploy()).receipt["threads"] == 1


async def test_memory_is_the_high_water_mark_of_loading_and_answering(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        published = await platform.deploy()
        assert published.receipt["memory_bytes"] == 30 << 20
        platform.scaler.learns = lambda key: platform.plane.memory_learned(key, 77 << 20)
        published = await platform.deploy(idle=5)
        assert published.receipt["memory_bytes"] == 77 << 20
        assert platform.scaler.known[key(2)].memory_bytes == 77 << 20


async def test_memory_learned_after_the_publish_is_kept_over_a_restart(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy()
        platform.plane.memory_learned(key(1), 88 << 20)
        platform.plane.memory_learned(key(9), 88 << 20)
        registry = platform.plane.deployments.registry
        await until(lambda: registry.get("digits").current.revision.memory_bytes == 88 << 20)
    async with bench(tmp_path) as platform:
        assert platform.scaler.known[key(1)].memory_bytes == 88 << 20


async def test_missing_files_are_named_before_anything_starts(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        with pytest.raises(FilesMissing) as refusal:
            async with platform.publisher.admit(deploy_body(b"elsewhere")):
                pass
        assert refusal.value.details["files"] == ["model.bin"]
        assert platform.router.routes == {}
        assert platform.plane.deployments.claims == {}


async def test_an_admitted_model_stays_whoever_deletes_it_meanwhile(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.put(b"model")
        async with platform.publisher.admit(deploy_body()) as publication:
            with pytest.raises(Conflict):
                await platform.store.delete(manifest().digest)
            assert (await publication.run(ignore_progress)).receipt["verified"]
        assert_deployed(platform)
        await platform.plane.deployments.delete("digits")
        assert not is_pinned(platform)


async def test_a_sample_that_nests_without_end_fails_the_publish_with_a_sentence(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        sample: dict[str, Any] = {}
        for _ in range(900):
            sample = {"inputs": sample}
        with pytest.raises(SampleFailed, match="nests too deep"):
            await platform.deploy(sample=sample)
        assert_nothing_of(platform, 1)


async def test_one_name_is_published_by_one_at_a_time_and_others_meanwhile(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.scaler.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(platform.deploy())
            await until(lambda: key(1) in platform.scaler.known)
            with pytest.raises(Conflict, match="is being published"):
                await platform.deploy(idle=5)
            with pytest.raises(Conflict):
                await platform.plane.deployments.delete("digits")
            other = group.create_task(platform.deploy(name="other"))
            await until(lambda: key(1, "other") in platform.scaler.known)
            platform.scaler.gate.set()
        assert first.result().receipt["revision"] == other.result().receipt["revision"] == 1
        assert (await platform.deploy(idle=5)).receipt["revision"] == 2


async def test_a_publish_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.scaler.gate = asyncio.Event()
        publish = asyncio.ensure_future(platform.deploy())
        await until(lambda: key(1) in platform.scaler.known)
        publish.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publish
        assert platform.scaler.removed == [key(1)]
        assert platform.router.routes == {}
        assert_nothing_of(platform, 1)


async def test_a_publish_cancelled_at_any_point_is_either_nothing_or_whole(tmp_path: Path) -> None:
    """Cancel before and after every single step until a publish gets through: no state in between exists."""
    committed = 0
    for number in range(1, 100):
        async with bench(tmp_path / str(number)) as platform:
            await platform.put(b"model")
            reached = at_step(platform, number, lambda: cast("asyncio.Task[Any]", asyncio.current_task()).cancel())
            publish = asyncio.ensure_future(platform.deploy())
            await asyncio.wait({publish})
            if "digits" in platform.plane.deployments.registry.deployments:
                committed += 1
                assert_deployed(platform)
            else:
                assert platform.router.routes == {}
                assert_nothing_of(platform, 1)
            is_through = not publish.cancelled()
        if is_through:
            break
    assert is_through
    assert reached[0] == number - 1 > 2 * 24  # each of 24 calls at least, before and after
    assert committed > 1  # a late cancellation came after the point of no return


_CRASHER = """
import asyncio, os, sys
from pathlib import Path
from tests.control.bench import at_step, bench

async def publish(home, step):
    async with bench(home) as platform:
        await platform.put(b"model")
        at_step(platform, step, lambda: os._exit(9))
        await platform.deploy()

for step in map(int, sys.argv[2:]):
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        asyncio.run(publish(Path(sys.argv[1]) / str(step), step))
        os._exit(0)
"""


async def test_a_crash_at_any_point_is_nothing_or_a_whole_revision_after_the_restart(tmp_path: Path) -> None:
    steps = [*range(1, 9), *range(45, 60)]  # what lies between are the probes of one measurement
    crasher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CRASHER, str(tmp_path), *map(str, steps)), cwd=Path(__file__).parents[2]
    )
    assert await crasher.wait() == 0
    committed = 0
    for step in steps:
        async with bench(tmp_path / str(step)) as platform:
            if "digits" in platform.plane.deployments.registry.deployments:
                committed += 1
                assert_deployed(platform)
            else:
                assert platform.router.routes == {}
                assert_nothing_of(platform, 1)
                assert not (await platform.deploy()).is_unchanged
    assert 0 < committed < len(steps)


async def test_a_disk_that_is_full_at_the_commit_leaves_the_running_revision_as_it_was(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        await platform.deploy()
        connection = platform.plane.deployments.registry._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageFull, match="free space"):
            await platform.deploy(b"other", engine_settings={"text": "x" * 100_000})
        assert platform.router.routes["digits"].weights == ((1, 1),)
        assert_nothing_of(platform, 2, b"other")


async def test_models_from_a_url_are_fetched_with_progress_and_refused_with_the_sources_sentence(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as platform:
        await platform.put(b"model")
        steps: list[tuple[str, int | None]] = []

        def note(step: str, message: str, *, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
            steps.append((step, done_bytes))

        async def fetch(url: str, progress: Any) -> Any:
            if url.endswith("gone"):
                raise SourceUnreachable("404")
            progress(5, 5)
            return manifest()

        platform.publisher._fetch = fetch
        body = deploy_body().model_dump()
        for url in ("http://models.example/model.bin", "http://models.example/gone"):
            request = type(deploy_body()).model_validate(body | {"model": {"url": url}})
            async with platform.publisher.admit(request) as publication:
                if url.endswith("gone"):
                    with pytest.raises(SourceUnreachable):
                        await publication.run(ignore_progress)
                else:
                    assert not (await publication.run(note)).is_unchanged
        assert [step for step, _ in steps] == ["fetch", "check", "start", "infer", "measure", "done"]
        assert steps[0] == ("fetch", 5)


async def test_the_oldest_revisions_are_retired_when_there_are_too_many(tmp_path: Path) -> None:
    async with bench(tmp_path, keep_revisions=2) as platform:
        for number in range(4):
            await platform.deploy(f"model {number}".encode())
        await until(lambda: set(platform.router.revisions) == {key(3), key(4)})
        assert set(platform.scaler.known) == {key(3), key(4)}
        assert not is_pinned(platform, b"model 0")
        assert is_pinned(platform, b"model 3")


async def test_nothing_is_admitted_while_the_platform_shuts_down(tmp_path: Path) -> None:
    async with bench(tmp_path) as platform:
        platform.plane.close()
        with pytest.raises(Draining):
            await platform.deploy()
