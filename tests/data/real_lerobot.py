"""Run by an interpreter that has lerobot: lerobot writes a v3 set, and its own reader tells what is in it.

python real_lerobot.py ROOT READ.npz videos|images
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

SENTENCES = ("water the plant", "pull the drawer open", "water the plant")
LENGTHS = (14, 20, 16)
CAMERAS = {"observation.images.front": (96, 128, 3), "observation.images.wrist": (84, 84, 3)}
NEUTRAL = (0.026, -0.231, 0.571, 3.09, -0.029, 1.5, 0.04, -1.218, 1.04, 2.12, -2.342, -0.87, 1.641, 0.553, 1.0)


def brightness(step: int) -> int:
    """Of the lower half of a picture: neighbouring frames differ by 10."""
    return 16 + 10 * step


def write(root: Path, *, videos: bool) -> None:
    """Three episodes at 30 Hz: the arm moves along y by what is commanded, and brightness names the frame."""
    kind = "video" if videos else "image"
    features = {
        key: {"dtype": kind, "shape": shape, "names": ["height", "width", "channels"]} for key, shape in CAMERAS.items()
    }
    features["observation.state"] = {"dtype": "float32", "shape": (15,), "names": None}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": None}
    dataset = LeRobotDataset.create("local/real", 30, features, root=root, robot_type="panda", use_videos=videos)
    for sentence, length in zip(SENTENCES, LENGTHS, strict=True):
        state = np.array(NEUTRAL, np.float32)
        for step in range(length):
            action = np.array([0, 0.2 + 0.02 * step, 0, 0, 0, 0, 1.0 if step < length // 2 else -1.0], np.float32)
            frame = {"observation.state": state.copy(), "action": action, "task": sentence}
            for key, shape in CAMERAS.items():
                image = np.full(shape, 8, np.uint8)
                image[shape[0] // 2 :] = brightness(step)
                frame[key] = image
            dataset.add_frame(frame)
            state[1] += 0.02 * action[1]
        dataset.save_episode()
    dataset.finalize()


def read(root: Path, output: Path, *, videos: bool) -> None:
    """What lerobot's reader returns, frame by frame; pictures, uint8 (N, height, width, 3), of a set of images alone.

    Pictures of a video are not read: its reader for them, torchcodec, needs FFmpeg's libraries and a matching torch.
    """
    dataset = LeRobotDataset("local/real", root=root)
    rows = [dataset.hf_dataset[index] if videos else dataset[index] for index in range(len(dataset))]
    pictures = {} if videos else {key: [row[key].numpy().transpose(1, 2, 0) for row in rows] for key in CAMERAS}
    sentences = dataset.meta.tasks.index
    np.savez(
        output,
        state=np.stack([row["observation.state"].numpy() for row in rows]),
        action=np.stack([row["action"].numpy() for row in rows]),
        sentence=np.array([sentences[int(row["task_index"])] for row in rows]),
        **{key.rpartition(".")[2]: np.round(255 * np.stack(frames)).astype(np.uint8) for key, frames in pictures.items()},
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]), videos=sys.argv[3] == "videos")
    read(Path(sys.argv[1]), Path(sys.argv[2]), videos=sys.argv[3] == "videos")
