"""A collection is the same however it came about: at once, after kills, with one worker or two."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.collection import FRAMES_PER_SLOT, CollectionRequest, attempt_seed, collect
from rfedge.data.frames import frame_name
from rfedge.errors import ConfigError, DatasetError
from tests.data.recording import SyntheticEpisode, episode_frames, record, record_failure

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
            with pytest.raises(DatasetError, match="an interrupted collection|no frame files"):
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
    with pytest.raises(ConfigError, match=r"seed of the collection in .*got 8, expected 7, with which it was started"):
        collect(record, CollectionRequest(("open", "close"), 3, seed=8), tmp_path / "d")
    with pytest.raises(ConfigError, match="episodes per task of the collection"):
        collect(record, CollectionRequest(("open", "close"), 4, seed=7), tmp_path / "d")


def test_arguments_may_change_while_no_episode_is_there(tmp_path: Path) -> None:
    def broken(task: str, seed: int) -> SyntheticEpisode:
        raise OSError("no renderer")

    with pytest.raises(OSError, match="no renderer"):
        collect(broken, CollectionRequest(("open",), 1, scene="Z"), tmp_path / "d")
    assert collect(record, CollectionRequest(("open",), 1), tmp_path / "d").tasks[0].episodes == 1


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"got something other than a collection.*another --output"):
        collect(record, REQUEST, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    def nested(task: str, seed: int) -> SyntheticEpisode:
        collect(record, REQUEST, tmp_path / "d")
        return record(task, seed)

    with pytest.raises(ConfigError, match="got a collection that is still running"):
        collect(nested, REQUEST, tmp_path / "d")


def test_episodes_that_never_succeed_are_reported(tmp_path: Path) -> None:
    def close_fails(task: str, seed: int) -> SyntheticEpisode:
        return record_failure(task, seed) if task == "close" else record(task, seed)

    result = collect(close_fails, REQUEST, tmp_path / "d")
    assert [(row.episodes, row.missing) for row in result.tasks] == [(3, 0), (0, 3)]
    assert CalvinDataset.open(tmp_path / "d").tasks == ("open",)
    with pytest.raises(DatasetError, match="got no successful episode, expected at least one"):
        collect(record_failure, CollectionRequest(("open",), 1), tmp_path / "none")


def test_an_episode_longer_than_a_slot_is_refused(tmp_path: Path) -> None:
    def long(task: str, seed: int) -> SyntheticEpisode:
        return SyntheticEpisode("x", success=True, frames=episode_frames(65, np.random.default_rng(seed)))

    with pytest.raises(DatasetError, match=r"episode of 'open': got 65 frames, expected at most 64"):
        collect(long, REQUEST, tmp_path / "d")


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (CollectionRequest((), 1), r"tasks: got \[\], expected at least one"),
        (CollectionRequest(("a", "a"), 1), "each once"),
        (CollectionRequest(("a",), 0), "episodes per task: got 0, expected at least 1"),
        (CollectionRequest(("a",), 1, seed=-1), "seed: got -1"),
    ],
)
def test_requests_out_of_range(request_: CollectionRequest, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        collect(record, request_, tmp_path / "d")


def test_seeds_do_not_depend_on_the_other_tasks_or_episodes() -> None:
    seeds = {attempt_seed(0, task, episode, attempt) for task in "ab" for episode in range(20) for attempt in range(5)}
    assert len(seeds) == 200
    assert attempt_seed(0, "a", 0, 0) == attempt_seed(0, "a", 0, 0) != attempt_seed(1, "a", 0, 0)
