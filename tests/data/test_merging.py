"""Merged datasets: renumbered, linked, described anew, and traceable to their sources."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rfedge.bundle.artifact import hash_file
from rfedge.data import CalvinDataset
from rfedge.data.collection.collect import CollectionRequest, collect
from rfedge.data.merging import merge_datasets
from rfedge.data.statistics import DatasetStatistics
from rfedge.errors import ArtifactError, ConfigError, DatasetError
from rfedge.robot.conventions import Conventions
from tests.data.recording import SyntheticEpisode, episode_frames, record
from tests.errors import raises


def record_chain(task: str, seed: int) -> SyntheticEpisode:
    frames = episode_frames(7, np.random.default_rng(seed))
    return SyntheticEpisode(f"do {task}", success=True, frames=frames, tasks=(task, "light"), lengths=(3, 4))


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Scene D, scene A in chains, and scene D again."""
    collect(record, CollectionRequest(("open",), 2, seed=1), tmp_path / "first")
    chains = CollectionRequest(("open",), 2, seed=2, scene="A", frames_per_episode=128, recording={"chain_length": 2})
    collect(record_chain, chains, tmp_path / "chains")
    collect(record, CollectionRequest(("close", "open"), 1, seed=3), tmp_path / "third")
    return [tmp_path / name for name in ("first", "chains", "third")]


def test_every_segment_comes_over_with_its_frames(sources: list[Path], tmp_path: Path) -> None:
    result = merge_datasets(sources, tmp_path / "all")
    merged = CalvinDataset.open(tmp_path / "all")
    parts = [CalvinDataset.open(sources[index]) for index in (0, 2, 1)]  # the two of scene D come together
    assert [row.scene for row in result.sources] == ["D", "D", "A"]
    assert [row.folder for row in result.sources] == [str(part.folder) for part in parts]
    index = 0
    for part, row in zip(parts, result.sources, strict=True):
        for segment in part.segments:
            moved = merged.segments[index]
            index += 1
            assert (moved.start, moved.end) == (segment.start + row.shift, segment.end + row.shift)
            assert (moved.task, moved.instruction) == (segment.task, segment.instruction)
            for number in range(segment.start, segment.end + 1):
                assert merged.frame_path(number + row.shift).read_bytes() == part.frame_path(number).read_bytes()
    assert index == len(merged.segments) == result.num_segments == 8
    assert result.num_frames == len(merged.frame_numbers()) == sum(len(part.frame_numbers()) for part in parts)


def test_chains_stay_together_and_scenes_apart(sources: list[Path], tmp_path: Path) -> None:
    merge_datasets(sources, tmp_path / "all")
    merged = CalvinDataset.open(tmp_path / "all")
    assert len(merged.episodes) == 6
    assert [last - first + 1 for first, last in merged.episodes[-2:]] == [7, 7]
    assert [merged.scene_of(segment.start) for segment in merged.segments] == ["D"] * 4 + ["A"] * 4


def test_statistics_are_those_of_all_frames(sources: list[Path], tmp_path: Path) -> None:
    merge_datasets(sources, tmp_path / "all")
    builder = DatasetStatistics()
    for index in (0, 2, 1):
        part = CalvinDataset.open(sources[index])
        for segment in part.segments:
            builder.add_rows(segment.task, [part.frame(number) for number in range(segment.start, segment.end + 1)])
    assert (tmp_path / "all" / "training" / "statistics.yaml").read_text() == builder.to_yaml()


def test_frames_are_linked_and_outlive_their_source(sources: list[Path], tmp_path: Path) -> None:
    result = merge_datasets(sources[:2], tmp_path / "all")
    assert result.num_linked == result.num_frames
    merged = CalvinDataset.open(tmp_path / "all")
    number = merged.segments[0].start
    before = merged.frame(number)
    os.truncate(sources[0] / "collection.journal", 0)  # the source is collected again, with other seeds
    collect(record, CollectionRequest(("open",), 2, seed=9), sources[0])
    np.testing.assert_array_equal(merged.frame(number)["rgb_static"], before["rgb_static"])


def test_frames_are_copied_where_links_are_impossible(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_datasets(sources, tmp_path / "linked")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert merge_datasets(sources, tmp_path / "copied").num_linked == 0
    names = sorted(path.name for path in (tmp_path / "linked" / "training").glob("*.npz"))
    assert names == sorted(path.name for path in (tmp_path / "copied" / "training").glob("*.npz"))
    for name in names:
        assert (tmp_path / "linked/training" / name).read_bytes() == (tmp_path / "copied/training" / name).read_bytes()


def test_the_record_says_where_everything_came_from(sources: list[Path], tmp_path: Path) -> None:
    merge_datasets(sources, tmp_path / "all")
    record_of_all = json.loads((tmp_path / "all" / "collection.json").read_bytes())
    assert record_of_all["complete"] is True
    assert record_of_all["tasks"] == {"close": {"segments": 1}, "light": {"segments": 2}, "open": {"segments": 5}}
    chains = record_of_all["sources"][2]
    assert chains["arguments"]["chain_length"] == 2
    assert chains["record_sha256"] == hash_file(sources[1] / "collection.json")
    nested = merge_datasets([sources[0], sources[2]], tmp_path / "pair")
    assert merge_datasets([tmp_path / "pair", sources[1]], tmp_path / "nested").num_segments == nested.num_segments + 4
    inner = json.loads((tmp_path / "nested" / "collection.json").read_bytes())["sources"][0]
    assert [source["folder"] for source in inner["sources"]] == [f"{sources[index]}/training" for index in (0, 2)]


def test_what_cannot_be_merged_is_refused(sources: list[Path], tmp_path: Path) -> None:
    with raises(ConfigError, "datasets", got="...first", expected="two or more, each once"):
        merge_datasets(sources[:1], tmp_path / "all")
    with raises(ConfigError, expected="two or more, each once"):
        merge_datasets([sources[0], sources[0]], tmp_path / "all")
    with raises(DatasetError, got="no folder"):
        merge_datasets([sources[0], tmp_path / "nowhere"], tmp_path / "all")
    merge_datasets(sources[:2], tmp_path / "mixed")
    with raises(DatasetError, got="scenes A, D", expected="one scene a dataset"):
        merge_datasets([tmp_path / "mixed", sources[2]], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with raises(ArtifactError, got="an existing path"):
        merge_datasets(sources[1:], tmp_path / "mixed")


def say(root: Path, *, control_hz: float, resize: str) -> None:
    record = {"frequency_hz": control_hz, "options": {"resize": resize}, "missing": ["joints"]}
    (root / "conversion.json").write_text(json.dumps(record))


def test_rate_and_camera_geometry_are_handed_on_or_refused(sources: list[Path], tmp_path: Path) -> None:
    assert CalvinDataset.open(sources[0]).conventions == Conventions(30.0, None)
    for root in sources[:2]:
        say(root, control_hz=10.0, resize="pad")
    assert CalvinDataset.open(sources[0] / "training").conventions == Conventions(10.0, "pad")
    merge_datasets(sources[:2], tmp_path / "alike")
    assert CalvinDataset.open(tmp_path / "alike").conventions == Conventions(10.0, "pad")
    with raises(ConfigError, "control rate of dataset ...third...", got="30 Hz", expected="10 Hz, that of dataset..."):
        merge_datasets(sources, tmp_path / "all")
    say(sources[1], control_hz=10.0, resize="crop")
    with raises(ConfigError, "camera geometry of dataset ...chains...", got="crop", expected="pad..."):
        merge_datasets(sources[:2], tmp_path / "all")
    say(sources[1], control_hz=0.0, resize="crop")
    with raises(DatasetError, "record ...conversion.json", got="0.0 Hz, resize 'crop'", expected="a rate above 0..."):
        CalvinDataset.open(sources[1])
    assert not (tmp_path / "all").exists()
