"""Small copies of CALVIN's released splits: every file, key, dtype and pickle as published, few frames."""

import os
import pickle  # noqa: TID251 - writes object arrays as numpy 1 did, for the restricted reader to read
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rfedge.data.frames import frame_name, relative_actions
from tests.synthetic_demonstrations import NEUTRAL_STATE

# Frames of the scenes in the training splits, in the order of the files; only the beginning of each is laid out.
SCENES = {
    "debug": {"calvin_scene_D": [358482, 361252]},
    "D": {"calvin_scene_D": [0, 611098]},
    "ABC": {"calvin_scene_B": [0, 598909], "calvin_scene_C": [598910, 1191338], "calvin_scene_A": [1191339, 1795044]},
    "ABCD": {
        "calvin_scene_D": [0, 611098],
        "calvin_scene_B": [611099, 1210008],
        "calvin_scene_C": [1210009, 1802437],
        "calvin_scene_A": [1802438, 2406143],
    },
}
VALIDATION_STARTS = {"debug": (553567,), "D": (0, 219635), "ABC": (0, 219635, 399946), "ABCD": (0, 219635, 399946)}
EPISODE_FRAMES = 70
SEGMENTS = (("open_drawer", "pull the drawer"), ("push_red_block_left", "go push the red block to the left"))
_NUM_DIFFERENT_FRAMES = 4


class ListConfig:
    """Stands for the class of the OmegaConf library that lies in the released embeddings.npy."""

    def __init__(self, content: list[str]) -> None:
        self.content = content


def save_object(path: Path, content: Any) -> None:
    """Write as numpy 1 did: protocol 3, and the private module under its old name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = pickle.dumps(np.array(content, dtype=object), protocol=3).replace(b"numpy._core", b"numpy.core")
    stream = stream.replace(f"{ListConfig.__module__}\n".encode(), b"omegaconf.listconfig\n")
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(stream)


def release_frame(rng: np.random.Generator, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """One frame with all ten published arrays."""
    robot_obs = NEUTRAL_STATE + 0.003 * rng.normal(size=15) * (np.arange(15) < 14)
    actions = np.append(robot_obs[:6] + rng.normal(size=6) * (0.01, 0.01, 0.01, 0.03, 0.03, 0.03), 1.0)
    numbers = {
        "actions": actions,
        "rel_actions": relative_actions(robot_obs, actions),
        "robot_obs": robot_obs,
        "scene_obs": np.append([0.1, 0.0, 0.0, 0.0, 1.0, 0.0], rng.uniform(-0.3, 0.3, 18)),
    }
    images = {"rgb_static": (200, 200, 3), "rgb_gripper": (84, 84, 3), "rgb_tactile": (160, 120, 6)}
    ramp = {key: np.broadcast_to(np.arange(shape[1])[:, None], shape).astype(np.uint8) for key, shape in images.items()}
    depth = {"depth_static": (200, 200), "depth_gripper": (84, 84), "depth_tactile": (160, 120, 2)}
    return {
        **{key: value.astype(dtype) for key, value in numbers.items()},
        **{key: image + np.uint8(rng.integers(100)) for key, image in ramp.items()},
        **{key: np.full(shape, 4.2, np.float32) for key, shape in depth.items()},
    }


@dataclass
class Episodes:
    """Frame numbers of the laid out episodes, and the segments over them."""

    bounds: list[tuple[int, int]]
    segments: list[tuple[int, int]] = field(default_factory=list)


def write_split(folder: Path, starts: tuple[int, ...], *, dtype: type = np.float64, repeats: bool = False) -> Episodes:
    """Write the frames and index files that training and validation share."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    originals = []
    for number in range(_NUM_DIFFERENT_FRAMES):
        originals.append(folder / f"original-{number}")
        with originals[-1].open("wb") as file:
            np.savez_compressed(file, **release_frame(rng, dtype))
    episodes = Episodes([(start, start + EPISODE_FRAMES - 1) for start in starts])
    for start, end in episodes.bounds:
        for number in range(start, end + 1):
            os.link(originals[number % _NUM_DIFFERENT_FRAMES], folder / frame_name(number))
        episodes.segments += [
            (start + 2, start + 66),
            (start + 5, start + 40),
        ]  # they overlap; the first is CALVIN's longest
    if repeats:
        episodes.segments.append(episodes.segments[-1])
    for original in originals:
        original.unlink()
    np.save(folder / "ep_start_end_ids.npy", np.array(episodes.bounds, dtype=np.int64))
    np.save(folder / "ep_lens.npy", np.diff(episodes.bounds, axis=1)[:, 0] + 1)
    count = len(episodes.segments)
    names = [SEGMENTS[index % 2] for index in range(count - repeats)] + [SEGMENTS[1]] * repeats
    for name, width in (("lang_annotations", 384), ("lang_clip_resnet50", 1024), ("lang_paraphrase-MiniLM-L3-v2", 384)):
        annotations = {
            "language": {
                "ann": [sentence for _, sentence in names],
                "task": [task for task, _ in names],
                "emb": rng.normal(size=(count, 1, width)).astype(np.float32),
            },
            "info": {"episodes": [], "indx": [(np.int64(start), np.int64(end)) for start, end in episodes.segments]},
        }
        save_object(folder / name / "auto_lang_ann.npy", annotations)
    lines = []
    for key, size in (("robot_obs", 15), ("scene_obs", 24)):
        lines += [f"{key}:", "- _target_: calvin_models.calvin_agent.utils.transforms.NormalizeVector"]
        for name in ("mean", "std"):
            lines += [f"  {name}:", *(f"  - {0.25 + 0.5 * (name == 'std')}" for _ in range(size))]
    lines += ["act_max_bound: [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]", "act_min_bound:", *["- -1.0"] * 7]
    (folder / "statistics.yaml").write_text("\n".join(lines) + "\n")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "merged_config.yaml").write_text("scene:\n  name: calvin_scene_D\n  euler_obs: true\n")
    (folder / ".hydra" / "config.yaml").write_text("scene: calvin_scene_D_eval\n")
    return episodes


def write_release(root: Path, name: str, *, dtype: type = np.float64) -> dict[str, Episodes]:
    """Write the split `name` below `root` and return what its two halves hold."""
    scenes = SCENES[name]
    # Two episodes in the first scene, so that numbers have a gap inside a scene too.
    starts = [first for first, _ in scenes.values()]
    starts.insert(1, starts[0] + 1000)
    training = write_split(root / "training", tuple(starts), dtype=dtype)
    save_object(root / "training" / "scene_info.npy", scenes)
    validation = write_split(root / "validation", VALIDATION_STARTS[name], dtype=dtype, repeats=True)
    embeddings = {
        task: {"emb": np.zeros((1, 1, 384), np.float32), "ann": ListConfig([sentence])} for task, sentence in SEGMENTS
    }
    save_object(root / "validation" / "lang_annotations" / "embeddings.npy", embeddings)
    return {"training": training, "validation": validation}
