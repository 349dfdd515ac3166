"""Windows hold the frames and labels that jump-step training needs, and are sampled in an order that can be resumed."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset, FrameCache, Segment, WindowIndex, WindowSampler
from rfedge.data.frames import read_frame, write_frame
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import SamplerState, Window, label_chunks, split_segments
from rfedge.errors import ArtifactError, ConfigError, DatasetError
from tests.errors import raises


def test_every_frame_starts_a_window() -> None:
    index = WindowIndex([Segment(0, 9, "a", "x"), Segment(64, 66, "b", "y")], window=4)
    assert len(index) == 13
    assert index.windows[10] == Window(1, 0)


@pytest.mark.parametrize(
    ("offset", "stride", "steps", "real"),
    [
        (0, 1, [0, 1, 2, 3], [True] * 4),
        (6, 1, [6, 7, 8, 9], [True] * 4),
        (8, 1, [8, 9, 9, 9], [True, True, False, False]),
        (0, 5, [0, 5, 5, 5], [True, True, False, False]),
        (9, 5, [9, 9, 9, 9], [True, False, False, False]),
        (1, 3, [1, 4, 7, 7], [True, True, True, False]),
    ],
)
def test_a_window_that_does_not_fit_is_cut_and_filled(offset: int, stride: int, steps: list[int], real: list[bool]) -> None:
    index = WindowIndex([Segment(100, 109, "a", "x")], window=4, frame_stride=stride, chunk_size=stride)
    found, mask = index.steps(Window(0, offset))
    assert (found.tolist(), mask.tolist()) == (steps, real)


def test_labels_are_consecutive_actions_with_calvins_padding() -> None:
    actions = np.arange(1, 36, dtype=np.float32).reshape(5, 7)
    actions[:, 6] = [1, 1, 1, -1, -1]
    labels, recorded = label_chunks(actions, np.array([0, 3]), 3)
    np.testing.assert_array_equal(labels[0], actions[0:3])
    np.testing.assert_array_equal(labels[1, :2], actions[3:5])
    assert labels[1, 2].tolist() == [0, 0, 0, 0, 0, 0, -1]
    assert recorded.tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_loaded_windows_match_the_files(dataset: CalvinDataset, stride: int) -> None:
    cache = FrameCache.open(dataset)
    index = WindowIndex(dataset.segments, window=3, frame_stride=stride, chunk_size=stride)
    batch = index.load(cache, range(len(index)))
    assert batch.image_static.shape == (24, 3, 200, 200, 3)
    assert not (batch.action_mask & ~batch.frame_mask[..., None]).any()
    for number, window in enumerate(index.windows):
        segment = dataset.segments[window.segment]
        assert batch.segments[number] == window.segment
        for position in np.flatnonzero(batch.frame_mask[number]):
            first = segment.start + window.offset + stride * int(position)
            np.testing.assert_array_equal(batch.image_gripper[number, position], dataset.frame(first)["rgb_gripper"])
            for ahead in range(stride):
                assert batch.action_mask[number, position, ahead] == (first + ahead <= segment.end)
                if first + ahead <= segment.end:
                    expected = dataset.frame(first + ahead)["rel_actions"].astype(np.float32)
                    np.testing.assert_array_equal(batch.actions[number, position, ahead], expected)


def test_with_stride_k_the_chunks_of_a_window_tile_the_segment() -> None:
    """Jump-step: no action between two frames is left out and none is labelled twice."""
    index = WindowIndex([Segment(0, 39, "a", "x")], window=8, frame_stride=5, chunk_size=5)
    steps, real = index.steps(Window(0, 0))
    assert real.all()
    assert [action for step in steps for action in range(step, step + 5)] == list(range(40))


def test_spread_is_even_and_bounded() -> None:
    index = WindowIndex([Segment(0, 49, "a", "x")], window=4)
    assert evenly_spaced(len(index), 3) == [0, 24, 49]
    assert evenly_spaced(len(index), 500) == list(range(50))


@pytest.mark.parametrize("name", ["window", "frame_stride", "chunk_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"window": 1, "frame_stride": 1, "chunk_size": 1, name: 0}
    with raises(ConfigError, name, got=0, expected="at least 1"):
        WindowIndex([Segment(0, 1, "a", "x")], **sizes)


def test_an_epoch_draws_every_window_once_and_batches_are_full() -> None:
    sampler = WindowSampler(10, 4, seed=3)
    batches = [sampler.next_batch() for _ in range(5)]
    drawn = [number for batch in batches for number in batch]
    assert all(len(batch) == 4 for batch in batches)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert sampler.state == SamplerState(epoch=2, position=0)


def test_a_batch_larger_than_the_dataset_runs_through_several_epochs() -> None:
    batch = WindowSampler(3, 8, seed=0).next_batch()
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


def test_the_sampler_resumes_from_its_state() -> None:
    whole = WindowSampler(10, 3, seed=5)
    expected = [whole.next_batch() for _ in range(9)]
    first = WindowSampler(10, 3, seed=5)
    for _ in range(4):
        first.next_batch()
    second = WindowSampler(10, 3, seed=5, state=first.state)
    assert [second.next_batch() for _ in range(5)] == expected[4:]
    assert WindowSampler(10, 3, seed=6).next_batch() != expected[0]
    with raises(ConfigError, got="0 and 3", expected="at least 1 of each"):
        WindowSampler(0, 3, seed=0)


def test_held_out_segments_are_disjoint_and_seeded(dataset: CalvinDataset) -> None:
    training, held_out = split_segments(dataset, 0.25, seed=0)
    assert sorted(training + held_out) == [0, 1, 2, 3]
    assert len(held_out) == 1
    assert split_segments(dataset, 0.25, seed=0) == (training, held_out)
    assert split_segments(dataset, 0.0, seed=0) == ([0, 1, 2, 3], [])
    assert len(split_segments(dataset, 0.01, seed=0)[1]) == 1
    assert len(split_segments(dataset, 0.99, seed=0)[0]) == 1
    with raises(ConfigError, "validation fraction", got="1..."):
        split_segments(dataset, 1.0, seed=0)


def test_a_share_of_the_data_lies_within_a_larger_one_and_leaves_what_is_held_out(dataset: CalvinDataset) -> None:
    everything, held_out = split_segments(dataset, 0.25, seed=0)
    shares = [split_segments(dataset, 0.25, seed=0, share=share) for share in (0.01, 0.67, 1.0)]
    assert [len(training) for training, _ in shares] == [1, 2, 3]
    assert set(shares[0][0]) < set(shares[1][0]) < set(shares[2][0]) == set(everything)
    assert {tuple(part) for _, part in shares} == {tuple(held_out)}
    with raises(ConfigError, "share of the data", got="0.0", expected="0 < share <= 1"):
        split_segments(dataset, 0.25, seed=0, share=0.0)


def test_the_cache_is_built_once_and_again_when_a_frame_changes(dataset: CalvinDataset) -> None:
    built: list[tuple[int, int]] = []
    first = FrameCache.open(dataset, on_frame=lambda done, total: built.append((done, total)))
    assert built[-1] == (24, 24)
    again = FrameCache.open(dataset, on_frame=lambda *_: pytest.fail("built twice"))
    assert again.content_sha256 == first.content_sha256 != ""
    assert all(left < right for left, right in pairwise(first.numbers))
    path = dataset.frame_path(3)
    write_frame(path, {**read_frame(path), "rgb_gripper": np.full((84, 84, 3), 7, np.uint8)})
    changed = FrameCache.open(dataset)
    assert (changed.rgb_gripper[changed.row(3)] == 7).all()
    assert changed.content_sha256 != first.content_sha256


def test_the_same_frames_elsewhere_have_the_same_content_hash(dataset: CalvinDataset, tmp_path: Path) -> None:
    first = FrameCache.open(dataset)
    os.utime(dataset.frame_path(0))
    assert FrameCache.open(dataset, folder=tmp_path / "elsewhere").content_sha256 == first.content_sha256


def test_an_interrupted_build_leaves_nothing(dataset: CalvinDataset) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    before = sorted(dataset.folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        FrameCache.open(dataset, on_frame=stop)
    assert sorted(dataset.folder.iterdir()) == before


def test_a_cache_that_cannot_be_written_says_where_to_put_it(dataset: CalvinDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(ArtifactError, "...file", got="file exists", expected="a path that this user may use"):
        FrameCache.open(dataset, folder=tmp_path / "file" / "cache")


def test_a_dataset_of_another_robot_does_not_reach_the_cache(dataset: CalvinDataset) -> None:
    path = dataset.frame_path(3)
    write_frame(path, {**read_frame(path), "robot_obs": np.zeros(9)})
    with raises(DatasetError, remedy="...of another robot..."):
        FrameCache.open(dataset)
