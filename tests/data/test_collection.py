"""A collection is the same however it came about: at once, after kills, with one worker or two."""

import functools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.collection.collect import FRAMES_PER_SLOT, CollectionRequest, attempt_seed, collect
from rfedge.data.frames import frame_name
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError, DatasetError
from tests.data.recording import SyntheticEpisode, episode_frames, record, record_failure
from tests.errors import raises

REQUEST = CollectionRequest(("open", "close"), episodes_per_task=3, seed=7)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_only_successful_episodes_are_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = collect(record, REQUEST, tmp_path / "d", on_progress=lambda *row: seen.append(row))
    assert seen == [(done, 6, "open" if done < 4 else "close") for done in range(1, 7)]
    dataset = CalvinDataset.open(tmp_path / "d")
    assert [segment.start for segment in dataset.segments] == [64 * slot for slot in range(6)]
    assert [row.episodes for row in result.tasks] == [3, 3]
    assert sum(row.frames for row in result.tasks) == len(dataset.frame_numbers())
    document = json.loads((tmp_path / "d" / "collection.json").read_bytes())
    assert document["complete"] is True
    assert document["arguments"]["tasks"] == ["open", "close"]
    for row in document["episodes"]:
        assert record(row["task"], row["seed"]).success
        assert row["seed"] == attempt_seed(7, row["task"], row["episode"], row["failed_attempts"])
    assert sum(row.retries for row in result.tasks) == sum(row["failed_attempts"] for row in document["episodes"]) > 0


def test_a_killed_collection_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    collect(record, REQUEST, tmp_path / "whole")
    calls = 0

    def killed(task: str, seed: int) -> SyntheticEpisode:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return record(task, seed)

    for _ in range(20):
        try:
            collect(killed, REQUEST, tmp_path / "parts")
            break
        except KeyboardInterrupt:
            with raises(DatasetError, got="an interrupted collection"):
                CalvinDataset.open(tmp_path / "parts")
            # What a kill can leave: half a journal line, half a frame of the next episode.
            with (tmp_path / "parts" / "collection.journal").open("ab") as file:
                file.write(b'{"task": "op')
            (tmp_path / "parts" / "training").mkdir(exist_ok=True)
            (tmp_path / "parts" / "training" / frame_name(5 * FRAMES_PER_SLOT + 20)).write_bytes(b"half")
    assert calls > 6
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_two_workers_give_the_same_bytes(tmp_path: Path) -> None:
    collect(record, REQUEST, tmp_path / "one")
    collect(record, REQUEST, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_finished_collection_is_left_alone(tmp_path: Path) -> None:
    collect(record, REQUEST, tmp_path / "d")
    before = contents(tmp_path / "d")
    result = collect(record_failure, REQUEST, tmp_path / "d")
    assert result.num_resumed == 6
    assert contents(tmp_path / "d") == before


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    collect(record, REQUEST, tmp_path / "d")
    with raises(ConfigError, "seed of the collection in ...", got=8, expected="7, with which it was started"):
        collect(record, CollectionRequest(("open", "close"), 3, seed=8), tmp_path / "d")
    with raises(ConfigError, "episodes per task of the collection..."):
        collect(record, CollectionRequest(("open", "close"), 4, seed=7), tmp_path / "d")


def test_a_collection_of_another_version_is_refused(tmp_path: Path) -> None:
    line = {"task": "open", "episode": 0, "first_frame": 0, "num_frames": 3, "seed": 1, "failed_attempts": 0}
    (tmp_path / "collection.journal").write_text(json.dumps(line) + "\n")
    with raises(ArtifactError, "line 1 of ...", got="no checksum, or text that is no record"):
        collect(record, REQUEST, tmp_path)


def test_arguments_may_change_while_no_episode_is_there(tmp_path: Path) -> None:
    def broken(task: str, seed: int) -> SyntheticEpisode:
        raise OSError("no renderer")

    with pytest.raises(OSError, match="no renderer"):
        collect(broken, CollectionRequest(("open",), 1, scene="Z"), tmp_path / "d")
    assert collect(record, CollectionRequest(("open",), 1), tmp_path / "d").tasks[0].episodes == 1


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with raises(ConfigError, got="something other than a collection", remedy="Choose another --output."):
        collect(record, REQUEST, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    def nested(task: str, seed: int) -> SyntheticEpisode:
        collect(record, REQUEST, tmp_path / "d")
        return record(task, seed)

    with raises(ConfigError, got="a collection that is still running"):
        collect(nested, REQUEST, tmp_path / "d")


def test_episodes_that_never_succeed_are_reported(tmp_path: Path) -> None:
    def close_fails(task: str, seed: int) -> SyntheticEpisode:
        return record_failure(task, seed) if task == "close" else record(task, seed)

    result = collect(close_fails, REQUEST, tmp_path / "d")
    assert [(row.episodes, row.missing) for row in result.tasks] == [(3, 0), (0, 3)]
    assert CalvinDataset.open(tmp_path / "d").tasks == ("open",)
    with raises(DatasetError, got="no successful episode", expected="at least one"):
        collect(record_failure, CollectionRequest(("open",), 1), tmp_path / "none")


def test_an_episode_longer_than_a_slot_is_refused(tmp_path: Path) -> None:
    def long(task: str, seed: int) -> SyntheticEpisode:
        return SyntheticEpisode("x", success=True, frames=episode_frames(65, np.random.default_rng(seed)))

    with raises(DatasetError, "episode of 'open'", got="65 frames", expected="at most 64"):
        collect(long, REQUEST, tmp_path / "d")
    with raises(DatasetError, "segment of 'open'", got="65 frames", expected="at most 64"):
        collect(long, CollectionRequest(("open",), 1, frames_per_episode=128), tmp_path / "d")


def record_chain(task: str, seed: int) -> SyntheticEpisode:
    """Two segments; of the tasks, only the first is the one that was asked for."""
    rng = np.random.default_rng(seed)
    frames = episode_frames(7, rng)
    return SyntheticEpisode(f"do {task}", success=True, frames=frames, tasks=(task, "light"), lengths=(3, 4))


CHAINS = CollectionRequest(("open", "light"), episodes_per_task=2, frames_per_episode=2 * FRAMES_PER_SLOT)


def test_a_chain_is_one_episode_of_several_segments(tmp_path: Path) -> None:
    result = collect(record_chain, CHAINS, tmp_path / "d")
    dataset = CalvinDataset.open(tmp_path / "d")
    spans = [(segment.start, segment.end, segment.task) for segment in dataset.segments]
    assert spans[:4] == [(0, 2, "open"), (3, 6, "light"), (128, 130, "open"), (131, 134, "light")]
    bounds = np.load(tmp_path / "d" / "training" / "ep_start_end_ids.npy")
    assert bounds.tolist() == [[128 * slot, 128 * slot + 6] for slot in range(4)]
    assert np.load(tmp_path / "d" / "training" / "ep_lens.npy").tolist() == [7] * 4
    assert [(row.task, row.episodes, row.segments, row.solved) for row in result.tasks] == [
        ("open", 2, 2, 2),
        ("light", 2, 6, 6),
    ]
    collect(record_chain, CHAINS, tmp_path / "two", workers=2)
    assert contents(tmp_path / "d") == contents(tmp_path / "two")


def test_segments_must_describe_every_frame(tmp_path: Path) -> None:
    def gap(task: str, seed: int) -> SyntheticEpisode:
        frames = episode_frames(7, np.random.default_rng(seed))
        return SyntheticEpisode("x", success=True, frames=frames, tasks=(task, task), lengths=(3, 3))

    with raises(DatasetError, "segments of 'open'", got="6 frames", expected="7, as recorded"):
        collect(gap, REQUEST, tmp_path / "d")


def test_failures_are_kept_when_asked_for(tmp_path: Path) -> None:
    request = CollectionRequest(("open",), 3, keep_failures=True, recording={"policy": {"mode": "closed-loop"}})
    result = collect(record_failure, request, tmp_path / "d")
    assert [(row.episodes, row.retries, row.missing, row.segments, row.solved) for row in result.tasks] == [(3, 0, 0, 3, 0)]
    document = json.loads((tmp_path / "d" / "collection.json").read_bytes())
    assert document["arguments"]["policy"] == {"mode": "closed-loop"}
    assert "what a policy learns" in document["labels"]["rel_actions"]
    assert [row["segments"][0]["solved"] for row in document["episodes"]] == [False] * 3
    other = CollectionRequest(("open",), 3, keep_failures=True, recording={"policy": None})
    with raises(ConfigError, "policy of the collection in ...", got="", expected="{'mode': 'closed-loop'}..."):
        collect(record_failure, other, tmp_path / "d")


def record_or_die(task: str, seed: int) -> SyntheticEpisode:
    if task == "close":
        os._exit(7)
    return record(task, seed)


def test_a_dead_worker_is_told_and_loses_nothing_that_was_done(tmp_path: Path) -> None:
    with raises(BackendUnavailableError, got="a worker process that died", remedy="Repeat the command to go on..."):
        collect(record_or_die, REQUEST, tmp_path / "d", workers=2)
    assert collect(record, REQUEST, tmp_path / "d", workers=2).tasks[1].episodes == 3
    collect(record, REQUEST, tmp_path / "whole")
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def record_open_last(task: str, seed: int, *, journal: Path) -> SyntheticEpisode:
    """The first job waits until the second one is in the journal."""
    for _ in range(3000):
        if task == "close" or '"close"' in journal.read_text():
            break
        time.sleep(0.01)
    return record(task, seed)


def test_an_episode_counts_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """A slow one does not hold back those behind it, and the result is the same."""
    request = CollectionRequest(("open", "close"), 1, seed=7)
    seen: list[str] = []
    waiting = functools.partial(record_open_last, journal=tmp_path / "d" / "collection.journal")
    collect(waiting, request, tmp_path / "d", workers=2, on_progress=lambda done, total, task: seen.append(task))
    assert seen == ["close", "open"]
    collect(record, request, tmp_path / "whole")
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("request_", "subject", "got"),
    [
        (CollectionRequest((), 1), "tasks", []),
        (CollectionRequest(("a", "a"), 1), "tasks", ["a", "a"]),
        (CollectionRequest(("a",), 0), "episodes per task", 0),
        (CollectionRequest(("a",), 1, seed=-1), "seed", -1),
    ],
)
def test_requests_out_of_range(request_: CollectionRequest, subject: str, got: object, tmp_path: Path) -> None:
    with raises(ConfigError, subject, got=got):
        collect(record, request_, tmp_path / "d")


def test_seeds_do_not_depend_on_the_other_tasks_or_episodes() -> None:
    seeds = {attempt_seed(0, task, episode, attempt) for task in "ab" for episode in range(20) for attempt in range(5)}
    assert len(seeds) == 200
    assert attempt_seed(0, "a", 0, 0) == attempt_seed(0, "a", 0, 0) != attempt_seed(1, "a", 0, 0)
