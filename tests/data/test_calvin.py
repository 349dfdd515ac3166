"""The reader and writer agree with each other and with CALVIN's own way of loading, and every damage has its sentence."""

import json
import pickle  # noqa: TID251 - builds the hostile file that the reader must refuse
import shutil
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.calvin import LANGUAGE_FILE, write_episode
from rfedge.data.frames import FRAME_KEYS, FRAME_SHAPES, frame_name, read_frame, write_frame
from rfedge.data.object_file import read_object_file, write_object_file
from rfedge.data.statistics import RunningMoments
from rfedge.errors import DatasetError
from tests.data.recording import episode_frames
from tests.errors import raises


def change_frame(path: Path, **changes: np.ndarray) -> None:
    write_frame(path, {**read_frame(path), **changes})


def test_segments_and_frames_come_back(root: Path, dataset: CalvinDataset) -> None:
    assert [(s.start, s.end, s.num_frames) for s in dataset.segments] == [(0, 5, 6), (6, 11, 6), (12, 17, 6), (18, 23, 6)]
    assert dataset.tasks == ("close_drawer", "open_drawer")
    assert CalvinDataset.open(root / "training") == dataset
    frame = dataset.frame(7)
    assert {key: array.shape for key, array in frame.items()} == FRAME_SHAPES
    assert list(dataset.frame(7, ["rel_actions"])) == ["rel_actions"]


def test_calvins_own_loader_reads_every_file(root: Path) -> None:
    folder = root / "training"
    annotations = np.load(folder / LANGUAGE_FILE, allow_pickle=True).item()
    assert annotations["info"]["indx"] == [(0, 5), (6, 11), (12, 17), (18, 23)]
    assert annotations["info"]["episodes"] == []
    assert annotations["language"]["task"][0] == "open_drawer"
    assert annotations["language"]["emb"].shape == (4, 1, 384)
    assert np.load(folder / "ep_start_end_ids.npy").tolist() == [[0, 5], [6, 11], [12, 17], [18, 23]]
    assert np.load(folder / "ep_lens.npy").tolist() == [6, 6, 6, 6]
    assert np.load(folder / "scene_info.npy", allow_pickle=True).item() == {"calvin_scene_D": [0, 23]}
    assert np.load(folder / frame_name(3))["rgb_static"].shape == (200, 200, 3)


def test_equal_frames_are_equal_bytes(tmp_path: Path) -> None:
    frames = episode_frames(1, np.random.default_rng(0))
    write_episode(tmp_path / "a", 0, frames)
    write_episode(tmp_path / "b", 0, frames)
    assert (tmp_path / "a" / frame_name(0)).read_bytes() == (tmp_path / "b" / frame_name(0)).read_bytes()


def test_float32_states_and_extra_keys_are_accepted(tmp_path: Path) -> None:
    row = {key: array[0] for key, array in episode_frames(1, np.random.default_rng(0)).items()}
    row |= {key: row[key].astype(np.float32) for key in ("robot_obs", "scene_obs", "actions", "rel_actions")}
    np.savez_compressed(tmp_path / "frame.npz", **row, depth_static=np.zeros((200, 200), np.float32))
    assert read_frame(tmp_path / "frame.npz")["robot_obs"].dtype == np.float32


def test_statistics_match_numpy(dataset: CalvinDataset) -> None:
    states = np.stack([dataset.frame(number)["robot_obs"] for number in range(24)])
    actions = np.stack([dataset.frame(number)["rel_actions"] for number in range(24)])
    statistics = dataset.statistics()
    np.testing.assert_allclose(statistics.moments["robot_obs"].mean, states.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(statistics.moments["robot_obs"].deviation, states.std(axis=0), atol=1e-12)
    np.testing.assert_array_equal(statistics.moments["rel_actions"].minimum, actions.min(axis=0))
    assert statistics.episodes_per_task == {"close_drawer": 2, "open_drawer": 2}
    text = (dataset.folder / "statistics.yaml").read_text()
    assert text == statistics.to_yaml()
    assert "e-" not in text.split("robot_obs")[1]  # YAML 1.1 reads 1e-06 as text
    assert text.splitlines()[-1].startswith("act_min_bound: [")


def test_moments_do_not_depend_on_the_pieces() -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (50, 4))
    moments = RunningMoments(4)
    for piece in np.split(rows, [1, 7, 30]):
        moments.add(piece)
    moments.add(rows[:0])
    np.testing.assert_allclose(moments.deviation, rows.std(axis=0), rtol=1e-12)


def test_a_missing_folder(tmp_path: Path) -> None:
    with raises(DatasetError, got="no folder", expected="a CALVIN dataset", remedy="Make one with `rfedge demos..."):
        CalvinDataset.open(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with raises(DatasetError, got="no frame files", expected="files named episode_0000000.npz"):
        CalvinDataset.open(tmp_path)


def test_no_language(root: Path) -> None:
    (root / "training" / LANGUAGE_FILE).unlink()
    with raises(DatasetError, got="no language annotations", expected="lang_annotations/auto_lang_ann.npy"):
        CalvinDataset.open(root)


def test_a_missing_frame(root: Path) -> None:
    (root / "training" / frame_name(8)).unlink()
    with raises(DatasetError, got="no episode_0000008.npz", expected="frames 6 to 11 of 'open_drawer'"):
        CalvinDataset.open(root)


def test_an_interrupted_collection(root: Path) -> None:
    (root / "collection.json").write_text(json.dumps({"complete": False}))
    with raises(DatasetError, got="an interrupted collection", remedy="...same `rfedge demos` command..."):
        CalvinDataset.open(root)
    (root / "collection.json").write_text("{")
    with raises(DatasetError, got="unreadable text", expected="a collection record"):
        CalvinDataset.open(root / "training")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_frame(dataset: CalvinDataset, share: float) -> None:
    path = dataset.frame_path(2)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with raises(DatasetError, "...episode_0000002.npz", got="an unreadable file (File is not a zip file)"):
        dataset.frame(2)


def test_a_flipped_byte_in_a_frame(dataset: CalvinDataset) -> None:
    path = dataset.frame_path(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with raises(DatasetError, got="an unreadable file..."):
        dataset.frame(2)


def test_a_lost_frame(dataset: CalvinDataset) -> None:
    dataset.frame_path(2).unlink()
    with raises(DatasetError, got="no file", expected="an npz file"):
        dataset.frame(2)


def test_a_missing_key(dataset: CalvinDataset) -> None:
    frame = dataset.frame(2)
    del frame["rel_actions"]
    np.savez(dataset.frame_path(2), **frame)
    with raises(DatasetError, "frame episode_0000002.npz", got="keys ...", expected="'rel_actions'"):
        dataset.frame(2)


@pytest.mark.parametrize(
    ("key", "value", "got", "expected"),
    [
        ("robot_obs", np.zeros(9), "shape (9,)", "shape (15,)"),
        ("rgb_static", np.zeros((200, 200, 3), np.float32), "dtype float32", "dtype uint8"),
        ("rgb_gripper", np.zeros((84, 84), np.uint8), "shape (84, 84)", "shape (84, 84, 3)"),
        ("scene_obs", np.zeros(24, np.int64), "dtype int64", "a float dtype"),
        ("rel_actions", np.array([0, np.nan, 0, 0, 0, 0, 1.0]), "NaN or Inf", "finite values"),
        ("rel_actions", np.array([0, 0, 0, 0, 0, 0, 0.5]), 0.5, "-1 (close) or 1 (open)"),
        ("rel_actions", np.array([0, 3, 0, 0, 0, 0, 1.0]), "pose up to 3.000", "[-1, 1]"),
    ],
)
def test_a_wrong_array(dataset: CalvinDataset, key: str, value: np.ndarray, got: object, expected: str) -> None:
    change_frame(dataset.frame_path(2), **{key: value})
    with raises(DatasetError, f"...{key} of episode_0000002.npz", got=got, expected=expected):
        dataset.frame(2)


def test_the_writer_refuses_what_the_reader_would() -> None:
    frames = episode_frames(3, np.random.default_rng(0))
    frames["rel_actions"][1, 6] = 0.0
    with raises(DatasetError, "gripper in rel_actions of episode at frame 64, step 1", got="0.0"):
        write_episode(Path("never made"), 64, frames)
    with raises(DatasetError, got="lengths..."):
        write_episode(Path("never made"), 64, {**frames, "actions": frames["actions"][:2]})
    with raises(DatasetError, got="no 'actions'"):
        write_episode(Path("never made"), 64, {key: frames[key] for key in FRAME_KEYS if key != "actions"})
    assert not Path("never made").exists()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (shutil.rmtree, ("/nowhere",))


def test_a_hostile_pickle_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "auto_lang_ann.npy"
    write_object_file(path, {"language": Hostile()})
    with raises(DatasetError, got="the class shutil.rmtree", expected="numpy arrays, lists, dicts, text and numbers"):
        read_object_file(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_every_numpy_age_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"emb": np.arange(6, dtype=np.float32).reshape(2, 3), "indx": [(np.int64(1), 2)], "ann": ["a"]}
    path = tmp_path / "file.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        stream = pickle.dumps(np.array(content, dtype=object), protocol)
        # Protocol 3 is what numpy 1 wrote, and there the module still had its old name.
        file.write(stream.replace(b"numpy._core", b"numpy.core") if protocol == 3 else stream)
    if protocol == 2:  # spells bytes through _codecs.encode; numpy has written protocol 3 or newer since 2019
        with raises(DatasetError, got="the class _codecs.encode"):
            read_object_file(path)
        return
    back = read_object_file(path)
    np.testing.assert_array_equal(back["emb"], content["emb"])
    assert back["indx"] == [(1, 2)]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"not numpy at all"])
def test_a_damaged_language_file(root: Path, content: bytes) -> None:
    (root / "training" / LANGUAGE_FILE).write_bytes(content)
    with raises(DatasetError, "...auto_lang_ann.npy", got="an unreadable file..."):
        CalvinDataset.open(root)


def test_a_language_file_of_another_structure(root: Path) -> None:
    path = root / "training" / LANGUAGE_FILE
    write_object_file(path, {"language": {"ann": ["a"], "task": []}, "info": {"indx": [(0, 1)]}})
    with raises(DatasetError, got="another structure..."):
        CalvinDataset.open(root)
    write_object_file(path, {"language": {"ann": [], "task": []}, "info": {"indx": []}})
    with raises(DatasetError, got="no segments"):
        CalvinDataset.open(root)
    write_object_file(path, {"language": {"ann": ["a"], "task": ["t"]}, "info": {"indx": [(5, 1)]}})
    with raises(DatasetError, expected="0 <= start <= end"):
        CalvinDataset.open(root)
    np.save(path, np.zeros(3))
    with raises(DatasetError, got="an array of shape (3,)", expected="one pickled dict"):
        CalvinDataset.open(root)
