"""CALVIN's released splits are read as they are published."""

import os
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset, FrameCache
from rfedge.data.frames import FRAME_KEYS, FRAME_SHAPES, frame_name
from rfedge.data.inspection.report import inspect_dataset
from rfedge.data.scene.scenes import BLOCK_ORDER, SceneFrames, read_scenes
from rfedge.envs.playtable.layout import find_layout
from rfedge.envs.tasks import TASKS
from rfedge.errors import DatasetError
from tests.data.released_split import SCENES, VALIDATION_STARTS, save_object, write_release
from tests.errors import raises


@pytest.fixture(scope="module", params=sorted(SCENES))
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    root = tmp_path_factory.mktemp(f"task_{request.param}_D")
    return request.param, root, write_release(root, request.param)


def test_both_halves_open_with_every_segment(release: tuple[str, Path, dict]) -> None:
    name, root, laid_out = release
    for split in ("training", "validation"):
        dataset = CalvinDataset.open(root, split=split)
        assert dataset == CalvinDataset.open(root / split)
        assert dataset.episodes == tuple(laid_out[split].bounds)
        assert [(segment.start, segment.end) for segment in dataset.segments] == laid_out[split].segments
        assert set(dataset.tasks) <= set(TASKS)
        frame = dataset.frame(dataset.segments[0].start)
        assert {key: array.shape for key, array in frame.items()} == FRAME_SHAPES
    assert CalvinDataset.open(root) == CalvinDataset.open(root, split="training")
    assert len(CalvinDataset.open(root, split="validation").segments) == 2 * len(VALIDATION_STARTS[name]) + 1


def test_the_scene_of_a_frame(release: tuple[str, Path, dict]) -> None:
    name, root, _ = release
    dataset = CalvinDataset.open(root)
    for scene, (first, last) in SCENES[name].items():
        assert dataset.scene_of(first) == dataset.scene_of(last) == scene[-1]
    assert dataset.scene_of(9_999_999) is None
    # Validation splits have no scene file; their recorded configuration names the scene.
    assert CalvinDataset.open(root, split="validation").scene_of(219635) == "D"


def test_a_released_split_has_no_damage(release: tuple[str, Path, dict]) -> None:
    name, root, laid_out = release
    for split in ("training", "validation"):
        report = inspect_dataset(root, split=split, num_frames=None, task_names=TASKS)
        assert report.findings == ()
        assert report.num_frames == report.num_frames_checked == 70 * len(laid_out[split].bounds)
        assert report.language_folders == ("lang_annotations", "lang_clip_resnet50", "lang_paraphrase-MiniLM-L3-v2")
    assert "1 segments repeat the frames and task of another one" in report.notes
    training = inspect_dataset(root, task_names=TASKS)
    assert [row.scene for row in training.scenes] == [scene[-1] for scene in SCENES[name]]
    mixed = {f"scene_obs of {scene[-1]}" for scene in SCENES[name]} if len(SCENES[name]) > 1 else set()
    assert set(training.spreads) == {"robot_obs", "scene_obs", "rel_actions"} | mixed
    assert training.against_statistics["act_max_bound"] < 1.0


def test_a_released_split_can_be_cached(tmp_path: Path) -> None:
    write_release(tmp_path / "task_D_D", "D")
    cache = FrameCache.open(CalvinDataset.open(tmp_path / "task_D_D"))
    assert len(cache.numbers) == 2 * 65
    assert cache.numbers[65] == 1002  # rows go on over the gap between the episodes
    assert cache.row(1002) == 65


def test_float32_numbers_are_accepted(tmp_path: Path) -> None:
    write_release(tmp_path / "d", "debug", dtype=np.float32)
    assert CalvinDataset.open(tmp_path / "d").frame(358500)["robot_obs"].dtype == np.float32
    assert inspect_dataset(tmp_path / "d", num_frames=None).findings == ()


def test_another_language_folder_serves_as_well(tmp_path: Path) -> None:
    write_release(tmp_path / "d", "debug")
    before = CalvinDataset.open(tmp_path / "d").segments
    (tmp_path / "d/training/lang_annotations/auto_lang_ann.npy").unlink()
    assert CalvinDataset.open(tmp_path / "d").segments == before


def test_opening_looks_for_few_frames_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ABCD has 2.4 million files: of 5000 segments only the ends of some are looked for, and no name is listed twice."""
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "frame").touch()
    segments = [(1000 * index, 1000 * index + 64) for index in range(5000)]
    for number in (number for segment in segments for number in segment):
        os.link(folder / "frame", folder / frame_name(number))
    annotations = {
        "language": {"ann": ["open it"] * 5000, "task": ["open_drawer"] * 5000, "emb": np.zeros((5000, 1, 8), np.float32)},
        "info": {"episodes": [], "indx": segments},
    }
    save_object(folder / "lang_annotations/auto_lang_ann.npy", annotations)
    listed, looked_for = [], []
    scandir, is_file = os.scandir, Path.is_file

    class CountingScan:
        def __init__(self, path: Path) -> None:
            self._scan = scandir(path)

        def __enter__(self) -> "CountingScan":
            return self

        def __exit__(self, *_: object) -> None:
            self._scan.close()

        def __iter__(self) -> "CountingScan":
            return self

        def __next__(self) -> os.DirEntry:
            listed.append(next(self._scan))
            return listed[-1]

    def counting_is_file(path: Path) -> bool:
        looked_for.append(path)
        return is_file(path)

    monkeypatch.setattr(os, "scandir", CountingScan)
    monkeypatch.setattr(Path, "is_file", counting_is_file)
    dataset = CalvinDataset.open(tmp_path)
    assert len(dataset.segments) == 5000
    assert len(listed) < 10
    assert 4000 < len(looked_for) < 4200


def test_a_large_dataset_without_some_frames_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / frame_name(0)).touch()
    annotations = {
        "language": {"ann": ["open it"] * 5000, "task": ["open_drawer"] * 5000, "emb": np.zeros((5000, 1, 8), np.float32)},
        "info": {"episodes": [], "indx": [(0, 64)] * 5000},
    }
    save_object(folder / "lang_annotations/auto_lang_ann.npy", annotations)
    with raises(DatasetError, got="no episode_0000064.npz", expected="frames 0 to 64 of 'open_drawer'"):
        CalvinDataset.open(tmp_path)


def test_the_order_of_the_blocks_is_the_simulators() -> None:
    for scene, colours in BLOCK_ORDER.items():
        assert tuple(f"block_{colour}" for colour in colours) == find_layout(scene).block_order


def test_a_wrong_level_of_folders_names_the_right_one(tmp_path: Path) -> None:
    write_release(tmp_path / "task_D_D", "debug")
    with raises(DatasetError, got="a folder that holds task_D_D/", remedy="Give ...task_D_D..."):
        CalvinDataset.open(tmp_path)
    with raises(DatasetError, "split", got="'test'", expected="training or validation"):
        CalvinDataset.open(tmp_path / "task_D_D", split="test")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "task_D_D.zip").touch()
    with raises(DatasetError, got="a file", expected="the folder of a CALVIN dataset"):
        CalvinDataset.open(tmp_path / "task_D_D.zip")


@pytest.mark.parametrize(
    ("frames", "got"), [([5], "another structure..."), ([9, 5], "SceneFrames(scene='D', first=9, last=5)")]
)
def test_a_damaged_scene_file(tmp_path: Path, frames: list[int], got: str) -> None:
    save_object(tmp_path / "scene_info.npy", {"calvin_scene_D": frames})
    with raises(DatasetError, f"file {tmp_path}/scene_info.npy", got=got):
        read_scenes(tmp_path)


def test_a_configuration_that_names_no_single_scene_says_nothing(tmp_path: Path) -> None:
    assert read_scenes(tmp_path) == ()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/merged_config.yaml").write_text("a: calvin_scene_A\nb: calvin_scene_B\n")
    assert read_scenes(tmp_path) == ()
    (tmp_path / ".hydra/merged_config.yaml").write_text("name: calvin_scene_B\n")
    assert read_scenes(tmp_path) == (SceneFrames("B", 0, None),)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"text"])
def test_a_damaged_episode_file(root: Path, content: bytes) -> None:
    (root / "training/ep_start_end_ids.npy").write_bytes(content)
    with raises(DatasetError, "...ep_start_end_ids.npy", got="an unreadable file..."):
        CalvinDataset.open(root)
    np.save(root / "training/ep_start_end_ids.npy", np.zeros((3, 3)))
    with raises(DatasetError, got="float64 (3, 3)", expected="integers (N, 2)..."):
        CalvinDataset.open(root)


def test_a_frame_that_is_lost_after_opening(root: Path) -> None:
    dataset = CalvinDataset.open(root)
    dataset.frame_path(3).unlink()
    with raises(DatasetError, "...episode_0000003.npz", got="no file", remedy="...`rfedge demos inspect` lists..."):
        FrameCache.open(dataset)


def test_frame_keys_are_the_part_of_a_released_frame_that_is_read(tmp_path: Path) -> None:
    write_release(tmp_path / "d", "debug")
    path = tmp_path / "d/training" / frame_name(358482)
    with np.load(path) as archive:
        assert set(FRAME_KEYS) < set(archive)
        assert len(archive.files) == 10
