"""Writes small LeRobot v3.0 datasets by hand, with the files, columns and types that lerobot 0.4 writes."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from tests.synthetic_demonstrations import NEUTRAL_STATE

CAMERAS = {"observation.images.top": (120, 160, 3), "observation.images.wrist": (84, 84, 3)}
SENTENCES = ("pull the handle to open the drawer", "Lift the cup!")
# Brightness step between two frames: far above what a codec changes, so that a picture tells its frame.
STEP = 16


def picture(key: str, frame: int) -> np.ndarray:
    """A dark bar, and below it half a picture whose brightness is the frame's."""
    image = np.full(CAMERAS[key], 4, np.uint8)
    image[len(image) // 2 :] = 16 + STEP * (frame % 14)
    return 255 - image if key.endswith("wrist") else image


def brightness(image: np.ndarray) -> float:
    """Of the part that tells the frame; pictures of two frames differ by STEP or more."""
    return float(image[3 * len(image) // 4 :].mean())


def _struct(key: str, frame: int) -> dict[str, object]:
    stream = io.BytesIO()
    Image.fromarray(picture(key, frame)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": f"frame-{frame:06d}.png"}


def write_video(path: Path, key: str, frames: list[int], fps: int = 30, *, first_pts: int = 0) -> None:
    """A video of `picture(key, frame)` for each of `frames`, whose stream begins `first_pts` frames late."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = CAMERAS[key]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"g": "2", "qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(picture(key, frame), format="rgb24")
            image.pts = first_pts + number
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def write_lerobot(
    root: Path,
    *,
    videos: bool = True,
    fps: int = 30,
    lengths: tuple[int, ...] = (12, 70, 9),
    files: tuple[int, ...] = (0, 0, 1),
    version: str = "v3.0",
    state: np.ndarray = NEUTRAL_STATE,
    action_size: int = 7,
) -> Path:
    """Episode e lies in file `files[e]`, its sentence is SENTENCES[e % 2]; frame i of it shows `picture(key, i)`."""
    features = {
        **{
            key: {"dtype": "video" if videos else "image", "shape": list(shape), "names": ["height", "width", "channels"]}
            for key, shape in CAMERAS.items()
        },
        "observation.depth.top": {"dtype": "video", "shape": [120, 160, 1], "names": None, "info": {"is_depth_map": True}},
        "observation.state": {"dtype": "float32", "shape": [len(state)], "names": None},
        "action": {"dtype": "float32", "shape": [action_size], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if videos else None,
        "features": features,
    }
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    (root / "meta/stats.json").write_text("{}")
    # The sentence is the index of a pandas data frame, which parquet keeps as a column with a note about it.
    index_column = "__index_level_0__"
    pandas = {
        "index_columns": [index_column],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
            for name, field, kind, numpy_type in (
                ("task_index", "task_index", "int64", "int64"),
                (None, index_column, "unicode", "object"),
            )
        ],
        "pandas_version": "2.2.3",
    }
    tasks = pa.table({"task_index": [0, 1], index_column: list(SENTENCES)})
    tasks = tasks.replace_schema_metadata({"pandas": json.dumps(pandas)})
    parquet.write_table(tasks, root / "meta/tasks.parquet")
    rows: dict[int, list[pa.Table]] = {file: [] for file in files}
    shown: dict[int, list[int]] = {file: [] for file in files}
    episodes = []
    index = 0
    for episode, (length, file) in enumerate(zip(lengths, files, strict=True)):
        steps = np.arange(length)
        actions = np.zeros((length, action_size), np.float32)
        actions[:, 0] = 0.25
        actions[:, -1] = np.where(steps < length // 2, 1.0, -1.0)
        states = np.tile(state.astype(np.float32), (length, 1))
        columns = {
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(states.ravel()), len(state)),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), action_size),
            "timestamp": pa.array((steps / fps).astype(np.float32)),
            "frame_index": pa.array(steps),
            "episode_index": pa.array(np.full(length, episode)),
            "index": pa.array(index + steps),
            "task_index": pa.array(np.full(length, episode % 2)),
        }
        if not videos:
            columns |= {key: pa.array([_struct(key, int(step)) for step in steps]) for key in CAMERAS}
        rows[file].append(pa.table(columns))
        entry = {
            "episode_index": episode,
            "tasks": [SENTENCES[episode % 2]],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": file,
            "dataset_from_index": index,
            "dataset_to_index": index + length,
            "stats/action/mean": actions.mean(axis=0).tolist(),
        }
        if videos:
            begin = len(shown[file]) / fps
            for key in CAMERAS:
                entry |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file}
                entry |= {f"videos/{key}/from_timestamp": begin, f"videos/{key}/to_timestamp": begin + length / fps}
        shown[file] += steps.tolist()
        episodes.append(entry)
        index += length
    parquet.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    for file, tables in rows.items():
        with parquet.ParquetWriter(root / f"data/chunk-000/file-{file:03d}.parquet", tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)  # one row group an episode
        if videos:
            for key in CAMERAS:
                write_video(root / f"videos/{key}/chunk-000/file-{file:03d}.mp4", key, shown[file], fps)
    return root
