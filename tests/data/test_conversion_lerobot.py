"""LeRobot v3 datasets, as video and as images, come out frame for frame, and what is not one is told in a sentence."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.conversion import ConversionOptions, convert_dataset, parse_fields
from rfedge.data.conversion.convert import ConversionResult
from rfedge.data.conversion.lerobot import VideoFrames
from rfedge.data.inspection.report import inspect_dataset
from rfedge.errors import ConfigError, DatasetError
from tests.data.lerobot_dataset import CAMERAS, SENTENCES, STEP, brightness, picture, write_lerobot, write_video
from tests.errors import raises
from tests.synthetic_demonstrations import NEUTRAL_STATE

TOP, WRIST = CAMERAS


def convert(source: Path, output: Path, **options: object) -> ConversionResult:
    return convert_dataset(source, "lerobot", output, ConversionOptions(**options))


@pytest.mark.parametrize("videos", [True, False])
def test_every_frame_has_its_own_picture(tmp_path: Path, videos: bool) -> None:
    source = write_lerobot(tmp_path / "source", videos=videos)
    result = convert(source, tmp_path / "out", tasks={SENTENCES[0]: "open_drawer"})
    assert (result.layout, result.source_hz, result.num_frames) == ("LeRobot v3.0, panda", 30.0, 91)
    assert result.fields == {"static": TOP, "gripper": WRIST, "state": "observation.state", "actions": "action"}
    assert result.missing == ("scene_obs",)
    dataset = CalvinDataset.open(tmp_path / "out")
    assert dataset.episodes == ((0, 11), (12, 81), (82, 90))
    segments = [(segment.start, segment.end, segment.task) for segment in dataset.segments]
    assert segments == [(0, 11, "open_drawer"), (12, 46, "lift_the_cup"), (47, 81, "lift_the_cup"), (82, 90, "open_drawer")]
    assert dataset.instructions == tuple(sorted(SENTENCES))
    for first, last in dataset.episodes:
        for number in range(first, last + 1):
            frame = dataset.frame(number)
            for key, name in ((TOP, "rgb_static"), (WRIST, "rgb_gripper")):
                off = abs(brightness(frame[name]) - brightness(picture(key, number - first)))
                assert off < (STEP / 2 if videos else 0.1)  # the codec changes a picture, but not into its neighbour
    np.testing.assert_allclose(dataset.frame(5)["rel_actions"], [0.25, 0, 0, 0, 0, 0, 1.0])
    assert dataset.frame(6)["rel_actions"][6] == -1.0
    assert inspect_dataset(tmp_path / "out", num_frames=None).findings == ()


def test_a_video_goes_back_when_asked_to(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(20,), files=(0,))
    video = VideoFrames(source / f"videos/{TOP}/chunk-000/file-000.mp4")
    for frame in (0, 7, 7, 3, 19, 0):
        assert abs(brightness(video.at(frame)) - brightness(picture(TOP, frame))) < STEP / 2
    with raises(DatasetError, got="...it ends after 20 frames, before frame 20..."):
        video.at(20)
    video.close()


def test_resampling_takes_the_picture_before(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", fps=15, lengths=(10,), files=(0,))
    with raises(ConfigError, got="15 Hz", expected="30 Hz, at which CALVIN's robot is controlled"):
        convert(source, tmp_path / "out")
    assert convert(source, tmp_path / "out", fps=30).num_frames == 20
    dataset = CalvinDataset.open(tmp_path / "out")
    shown = [round((brightness(dataset.frame(number)["rgb_static"]) - 16) / STEP) for number in range(20)]
    assert shown == [number // 2 for number in range(20)]
    np.testing.assert_allclose(dataset.frame(4)["rel_actions"][:2], [0.125, 0.0], atol=1e-9)


def test_a_change_of_task_within_an_episode_is_a_new_segment(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(10,), files=(0,))
    path = source / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    column = table.column_names.index("task_index")
    parquet.write_table(table.set_column(column, "task_index", [[0] * 4 + [1] * 6]), path)
    convert(source, tmp_path / "out")
    dataset = CalvinDataset.open(tmp_path / "out")
    rows = [(segment.start, segment.end, segment.instruction) for segment in dataset.segments]
    assert rows == [(0, 3, SENTENCES[0]), (4, 9, SENTENCES[1])]
    assert dataset.episodes == ((0, 9),)


def test_parts_of_a_state_can_be_mapped(tmp_path: Path) -> None:
    state = np.array([*NEUTRAL_STATE[:6], 0.02, -0.02])
    source = write_lerobot(tmp_path / "source", state=state, lengths=(5,), files=(0,))
    with raises(DatasetError, "state of episode 0", got="8 numbers", expected="CALVIN's 15...", remedy="Name its parts..."):
        convert(source, tmp_path / "out")
    texts = ["tcp_pos", "tcp_euler", "gripper_width"]
    ranges = ["0:3", "3:6", "6:8"]
    fields = parse_fields(f"{name}=observation.state[{part}]" for name, part in zip(texts, ranges, strict=True))
    result = convert(source, tmp_path / "out", fields=fields, allow_missing=("joints",), instruction="go")
    assert result.missing == ("joints", "scene_obs")
    assert "state" not in result.fields
    np.testing.assert_allclose(
        CalvinDataset.open(tmp_path / "out").frame(0)["robot_obs"][:7], [*NEUTRAL_STATE[:6], 0.04], atol=1e-6
    )


def test_versions_before_3_name_the_script_that_converts_them(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", version="v2.1", lengths=(5,), files=(0,))
    with raises(DatasetError, got="LeRobot v2.1", expected="v3.0", remedy="...convert_dataset_v21_to_v30..."):
        convert(source, tmp_path / "out")


def test_another_robot(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", action_size=6, state=np.zeros(6), lengths=(5,), files=(0,))
    with raises(DatasetError, "state of episode 0", got="6 numbers", expected="CALVIN's 15..."):
        convert(source, tmp_path / "out")
    source = write_lerobot(tmp_path / "other", action_size=8, lengths=(5,), files=(0,))
    with raises(DatasetError, "actions of episode 0", got="8 numbers", expected="7: xyz, euler xyz and gripper..."):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorten_record(path: Path) -> None:
    rows = parquet.read_table(path).to_pylist()
    rows[0]["length"] = 99
    parquet.write_table(parquet.read_table(path).from_pylist(rows), path)


def rename_tasks(path: Path) -> None:
    parquet.write_table(parquet.read_table(path).slice(1), path)


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        ("meta/info.json", Path.unlink, {"got": "no meta/info.json"}),
        ("meta/info.json", truncate, {"subject": "...info.json", "got": "another structure..."}),
        ("meta/tasks.parquet", Path.unlink, {"subject": "...tasks.parquet", "got": "an unreadable file (no file)"}),
        ("meta/tasks.parquet", rename_tasks, {"subject": "episode 0", "got": "task 0, without a sentence"}),
        ("meta/episodes/chunk-000/file-000.parquet", Path.unlink, {"got": "no episodes"}),
        ("meta/episodes/chunk-000/file-000.parquet", shorten_record, {"remedy": "...12 frames, expected 99, as meta/..."}),
        ("data/chunk-000/file-000.parquet", truncate, {"subject": "...file-000.parquet", "got": "an unreadable file..."}),
        ("data/chunk-000/file-000.parquet", Path.unlink, {"got": "an unreadable file (no file)"}),
        (f"videos/{TOP}/chunk-000/file-000.mp4", truncate, {"subject": "video ...file-000.mp4", "got": "an unreadable..."}),
        (f"videos/{WRIST}/chunk-000/file-001.mp4", Path.unlink, {"subject": "video ...file-001.mp4", "got": "no file"}),
    ],
)
def test_a_damaged_dataset(tmp_path: Path, file: str, damage, parts: dict) -> None:  # type: ignore[no-untyped-def]
    source = write_lerobot(tmp_path / "source", lengths=(12, 6), files=(0, 1))
    damage(source / file)
    with raises(DatasetError, **parts):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cameras_that_are_not_known(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(5,), files=(0,))
    info = json.loads((source / "meta/info.json").read_text())
    info["features"] = {key.replace(".top", ".laptop"): value for key, value in info["features"].items()}
    (source / "meta/info.json").write_text(json.dumps(info))
    with raises(DatasetError, got="cameras observation.images.laptop, ...", remedy="...--map static=KEY..."):
        convert(source, tmp_path / "out")
    with raises(DatasetError, got="no 'observation.depth.laptop' for static", expected="one of observation.images..."):
        convert(source, tmp_path / "out", fields=parse_fields(["static=observation.depth.laptop"]))


def shown(root: Path) -> list[int]:
    """Which picture each frame has."""
    dataset = CalvinDataset.open(root)
    count = dataset.episodes[-1][1] + 1
    return [round((brightness(dataset.frame(number)["rgb_static"]) - 16) / STEP) for number in range(count)]


def change_rows(source: Path, column: str, values: list, file: int = 0) -> None:
    path = source / f"data/chunk-000/file-{file:03d}.parquet"
    table = parquet.read_table(path)
    index = table.column_names.index(column)
    parquet.write_table(table.set_column(index, column, [values]), path)


def change_episodes(source: Path, **columns: list) -> None:
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    rows = parquet.read_table(path).to_pylist()
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name.replace("__", "/")] = value
    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_pictures_follow_their_rows_whatever_the_stamps_say(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(12,), files=(0,))
    stamps = np.arange(12) / 30.0
    stamps[[3, 7]] += 0.018  # more than half a frame late
    change_rows(source, "timestamp", stamps.tolist())
    result = convert(source, tmp_path / "out")
    assert shown(tmp_path / "out") == list(range(12))
    assert result.notes[0].startswith("timestamps of 1 episodes are up to 18 ms off frame_index / fps; pictures were taken")
    stamps[-1] += 0.06  # past the end of the video
    change_rows(source, "timestamp", stamps.tolist())
    convert(source, tmp_path / "again")
    assert shown(tmp_path / "again") == list(range(12))


def test_a_stream_that_starts_late_begins_with_frame_0(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(12,), files=(0,))
    for key in CAMERAS:
        write_video(source / f"videos/{key}/chunk-000/file-000.mp4", key, list(range(12)), first_pts=2)
    convert(source, tmp_path / "out")
    assert shown(tmp_path / "out") == list(range(12))


def test_a_stale_file_index_is_looked_through(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(6, 6, 6), files=(0, 0, 1))
    change_episodes(source, data__file_index=[0, 0, 0])
    result = convert(source, tmp_path / "out")
    assert shown(tmp_path / "out") == [0, 1, 2, 3, 4, 5] * 3
    assert result.notes[0] == (
        "data/file_index of episode 2 names file-000.parquet, its rows lie in file-001.parquet, as lerobot's converter from "
        "v2.1 leaves it"
    )


def write_tasks(source: Path, **columns: list) -> None:
    parquet.write_table(pa.table(columns), source / "meta/tasks.parquet")


def test_the_sentence_is_the_column_task_or_the_index(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(5, 5), files=(0, 0))
    numbers, scenes, sentences = [1, 0], ["kitchen", "kitchen"], ["lift the cup", "open the drawer"]
    for place, columns in enumerate(
        (
            {"task_index": numbers, "category": scenes, "task": sentences},
            {"category": scenes, "__index_level_0__": sentences, "task_index": numbers},
            {"__index_level_0__": scenes, "task_index": numbers, "task": sentences},
        )
    ):
        write_tasks(source, **columns)
        convert(source, tmp_path / f"out{place}")
        rows = [(part.start, part.end, part.instruction) for part in CalvinDataset.open(tmp_path / f"out{place}").segments]
        assert rows == [(0, 4, "open the drawer"), (5, 9, "lift the cup")]
    write_tasks(source, task_index=numbers, category=scenes)
    with raises(DatasetError, got="columns task_index, category", expected="task_index and task..."):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", instruction="go")
    write_tasks(source, task_index=[0, 0], task=sentences)
    with raises(DatasetError, got="task 0 as 'lift the cup' and 'open the drawer'"):
        convert(source, tmp_path / "out2")


def test_sentences_in_the_rows_can_be_mapped(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(4,), files=(0,))
    path = source / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path).append_column("language", [["open it"] * 2 + ["close it"] * 2])
    parquet.write_table(table, path)
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["language"] = {"dtype": "string", "shape": [1], "names": None}
    (source / "meta/info.json").write_text(json.dumps(info))
    convert(source, tmp_path / "out", fields=parse_fields(["instruction=language"]))
    assert [part.instruction for part in CalvinDataset.open(tmp_path / "out").segments] == ["open it", "close it"]


def drop_column(path: Path, *names: str) -> None:
    parquet.write_table(parquet.read_table(path).drop_columns(list(names)), path)


@pytest.mark.parametrize("trial", [True, False])
def test_short_videos_and_missing_columns_are_found_before_a_picture_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: bool
) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(12, 20), files=(0, 0))
    for key in CAMERAS:
        write_video(source / f"videos/{key}/chunk-000/file-000.mp4", key, [0] * 28)
    drop_column(source / "data/chunk-000/file-000.parquet", "action", "task_index")
    monkeypatch.setattr(VideoFrames, "at", None)
    with raises(DatasetError, got="3 faults") as error:
        convert_dataset(source, "lerobot", tmp_path / "out", ConversionOptions(), trial=trial)
    for key in CAMERAS:
        path = source / f"videos/{key}/chunk-000/file-000.mp4"
        assert f"video {path}: got 28 frames, expected 32, so that every row of episode 1 has" in error.value.remedy
    assert "file-000.parquet: got no column action, task_index, expected" in error.value.remedy


def test_records_that_cannot_be(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(12, 8), files=(0, 0))
    name = f"videos__{TOP}__to_timestamp"
    change_episodes(source, **{name: [12 / 30, 25 / 30]})
    subject = f"videos/{TOP}/to_timestamp of episode 1"
    with raises(DatasetError, subject, got="0.833 s", expected="at most 0.667 s, where file-000.mp4 ends"):
        convert(source, tmp_path / "out")
    source = write_lerobot(tmp_path / "gaps", lengths=(5,), files=(0,))
    change_rows(source, "frame_index", [0, 1, 3, 4, 5])
    with raises(DatasetError, "episode 0 in ...", got="frame_index 3 in row 2", expected="0, 1, 2, ... without gaps"):
        convert(source, tmp_path / "out")
    source = write_lerobot(tmp_path / "columns", lengths=(5,), files=(0,))
    drop_column(source / "meta/episodes/chunk-000/file-000.parquet", "length", f"videos/{TOP}/from_timestamp")
    with raises(DatasetError, got=f"no column length, videos/{TOP}/from_timestamp"):
        convert(source, tmp_path / "out")
