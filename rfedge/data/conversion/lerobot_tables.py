"""The parquet files of a LeRobot dataset of version 3: its record, its episodes, its sentences and the rows of an episode.

Faults are gathered, not raised one by one: `faults` of `RowTables` lists every column that is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rfedge.errors import DatasetError
from rfedge.io.disk import read_json

INFO: Final = "meta/info.json"
_VERSION: Final = "v3."
_DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODE_COLUMNS: Final = ("episode_index", "length", "data/chunk_index", "data/file_index")


def read_info(path: Path) -> dict[str, Any]:
    """Return meta/info.json below the dataset's root `path`."""
    if not (path / INFO).is_file():
        raise DatasetError(
            f"source {path}", got=f"no {INFO}", expected="the root of a LeRobot dataset", remedy="Check the path."
        )
    try:
        info = dict(read_json(path / INFO))
        version, _, _ = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
    except (ValueError, KeyError, TypeError) as error:
        got = f"another structure ({error!r})"
        expected = "codebase_version, fps and features"
        remedy = "Copy it again."
        raise DatasetError(f"file {path / INFO}", got=got, expected=expected, remedy=remedy) from None
    if not version.startswith(_VERSION):
        raise DatasetError(
            f"dataset {path}",
            got=f"LeRobot {version}",
            expected="v3.0",
            remedy="Convert it first with lerobot's own script: python -m "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=NAME.",
        )
    return info


def read_episodes(path: Path, videos: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows of meta/episodes by number, without the statistics, with the place of each of `videos`."""
    import pyarrow
    import pyarrow.parquet as parquet

    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(
            f"dataset {path}", got="no episodes", expected="meta/episodes/*/*.parquet", remedy="Copy it again."
        )
    wanted = [*_EPISODE_COLUMNS]
    wanted += [f"videos/{key}/{part}" for key in videos for part in ("chunk_index", "file_index", "from_timestamp")]
    episodes: list[dict[str, Any]] = []
    file = files[0]
    try:
        for file in files:
            # Statistics of each episode make up most of these files and are not needed.
            names = [name for name in parquet.read_schema(file).names if not name.startswith("stats/")]
            _refuse_missing(file, wanted, names)
            episodes += parquet.read_table(file, columns=names).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    return sorted(episodes, key=lambda episode: int(episode["episode_index"]))


def read_sentences(path: Path) -> dict[int, str]:
    """Return meta/tasks.parquet as number -> sentence: the column `task`, or the text that indexes the data frame."""
    import pyarrow
    import pyarrow.parquet as parquet

    file = path / "meta" / "tasks.parquet"
    try:
        table = parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    texts = [name for name in table.column_names if pyarrow.types.is_string(table.schema.field(name).type)]
    texts += [name for name in table.column_names if pyarrow.types.is_large_string(table.schema.field(name).type)]
    index = [name for name in _index_columns(table.schema.metadata) if name in texts]
    # Not the first text: a category or a scene may stand before the sentence.
    named = [name for name in ("task", *index, "__index_level_0__") if name in texts]
    if "task_index" not in table.column_names or not named:
        expected = "task_index and task (a column, or the index of the data frame)"
        remedy = "Name the sentences' column task, or give one for all episodes with --instruction."
        raise DatasetError(f"file {file}", got=f"columns {', '.join(table.column_names)}", expected=expected, remedy=remedy)
    sentences: dict[int, str] = {}
    for number, text in zip(table["task_index"].to_pylist(), table[named[0]].to_pylist(), strict=True):
        if sentences.setdefault(int(number), text or "") != (text or ""):
            got = f"task {number} as {sentences[int(number)]!r} and {text!r}"
            remedy = "Correct the file, or give one sentence for all episodes with --instruction."
            raise DatasetError(f"file {file}", got=got, expected="one sentence for each task_index", remedy=remedy)
    return sentences


def _index_columns(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    try:
        columns = json.loads((metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return []
    return [name for name in columns if isinstance(name, str)]


class RowTables:
    """The rows of episodes, read file by file; `template` is `data_path` of meta/info.json, or None for the usual one."""

    def __init__(self, path: Path, template: str | None) -> None:
        self._root = path
        self._template = template or _DATA_PATH
        self._numbers: dict[Path, frozenset[int]] = {}
        self._held: tuple[Path, tuple[str, ...], Any] | None = None
        self.moved: dict[int, tuple[Path, Path]] = {}

    def read(self, episode: Mapping[str, Any], columns: Sequence[str], *, whole_file: bool) -> tuple[Path, Any]:
        """Return file and rows of one episode by frame; with `whole_file` the file is held for the next call."""
        number = int(episode["episode_index"])
        file = self._find(episode)
        wanted = [*dict.fromkeys((*columns, "frame_index", "episode_index"))]
        rows = self._rows(file, wanted, number, whole_file=whole_file)
        subject = f"episode {number} in {file}"
        if not rows.num_rows or rows.num_rows != int(episode["length"]):
            expected = f"{episode['length']}, as meta/episodes says"
            remedy = "Copy the dataset again, all of it."
            raise DatasetError(subject, got=f"{rows.num_rows} frames", expected=expected, remedy=remedy)
        rows = rows.sort_by("frame_index")
        frames = rows["frame_index"].to_pylist()
        gap = next((step for step, frame in enumerate(frames) if frame != step), None)
        if gap is not None:
            expected = "0, 1, 2, ... without gaps"
            remedy = "Rows and pictures belong together by it: write the dataset again."
            raise DatasetError(subject, got=f"frame_index {frames[gap]} in row {gap}", expected=expected, remedy=remedy)
        return file, rows

    def _find(self, episode: Mapping[str, Any]) -> Path:
        """Return the file that holds an episode: the named one, or another where the record is stale."""
        number = int(episode["episode_index"])
        named = self._file(episode)
        if number in self.moved:
            return self.moved[number][1]
        if not named.is_file() or number in self._episodes_in(named):
            return named
        # lerobot's converter from v2.1 leaves data/file_index at the file before for the first episode of the next.
        folder = self._root / "data"
        others = sorted(folder.glob("*/*.parquet"), key=lambda file: (abs(_number(file) - _number(named)), file))
        for file in others:
            if number in self._episodes_in(file):
                self.moved[number] = (named, file)
                return file
        return named

    def _file(self, episode: Mapping[str, Any]) -> Path:
        place = {"chunk_index": int(episode["data/chunk_index"]), "file_index": int(episode["data/file_index"])}
        return self._root / self._template.format(**place)

    def _episodes_in(self, file: Path) -> frozenset[int]:
        import pyarrow
        import pyarrow.parquet as parquet

        if file not in self._numbers:
            try:
                _refuse_missing(file, ["episode_index"], parquet.read_schema(file).names)
                column = parquet.read_table(file, columns=["episode_index"])["episode_index"]
            except (OSError, pyarrow.ArrowException) as error:
                raise _unreadable(file, error) from None
            self._numbers[file] = frozenset(column.unique().to_pylist())
        return self._numbers[file]

    def _rows(self, file: Path, columns: list[str], number: int, *, whole_file: bool) -> Any:
        import pyarrow
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        try:
            _refuse_missing(file, columns, parquet.read_schema(file).names)
            if not whole_file:
                return parquet.read_table(file, columns=columns, filters=[("episode_index", "==", number)])
            if self._held is None or self._held[:2] != (file, tuple(columns)):
                self._held = (file, tuple(columns), parquet.read_table(file, columns=columns))
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(file, error) from None
        table = self._held[2]
        return table.filter(compute.equal(table["episode_index"], number))


def _number(file: Path) -> int:
    """Return the place of a file in the order of chunk and file numbers."""
    chunk, name = (int(re.sub(r"[^0-9]", "", part) or "0") for part in (file.parent.name, file.stem))
    return 1000 * chunk + name


def _refuse_missing(file: Path, wanted: Iterable[str], names: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        expected = "the columns that meta/info.json and the format name"
        remedy = "Write the dataset again with lerobot, or map other columns with --map."
        raise DatasetError(f"file {file}", got=f"no column {', '.join(missing)}", expected=expected, remedy=remedy)


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = " ".join(str(error).split()) if path.exists() else "no file"
    expected = "a parquet file with the columns that meta/info.json names"
    remedy = "It is missing, truncated or damaged: copy the dataset again."
    return DatasetError(f"file {path}", got=f"an unreadable file ({reason})", expected=expected, remedy=remedy)
