"""`rfedge demos convert` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

from rfedge.data import CalvinDataset
from tests.data.lerobot_dataset import SENTENCES, write_lerobot


def convert(source: Path, output: Path, *arguments: object, hidden: str = "none") -> subprocess.CompletedProcess[str]:
    words = ["demos", "convert", source, "--output", output, *arguments]
    # A library of which sys.modules says None is one that is not installed.
    call = f"from rfedge.cli.app import main; main({[str(word) for word in words]!r})"
    code = f"import sys; sys.modules[{hidden!r}] = None; {call}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_dataset_is_converted(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(12, 70), files=(0, 0))
    output = tmp_path / "out"
    tried = convert(source, output, "--from", "lerobot", "--dry-run", "--json")
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout)["folder"] is None
    assert not output.exists()
    done = convert(source, output, "--from", "lerobot", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == str(output / "training")
    # The evaluation's own sentence is known, any other one becomes the name of its task.
    assert document["segments_per_task"] == {"lift_the_cup": 2, "open_drawer": 1}
    assert CalvinDataset.open(output).instructions == tuple(sorted(SENTENCES))
    assert json.loads((output / "conversion.json").read_bytes())["versions"].keys() >= {"python", "pyarrow", "av"}


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", version="v2.1", lengths=(5,), files=(0,))
    cases = (
        (convert(source, tmp_path / "out", "--from", "lerobot"), "got LeRobot v2.1, expected v3.0"),
        (convert(source, tmp_path / "out", "--from", "hdf5"), "got no HDF5 file in it"),
        (convert(source, tmp_path / "out", "--from", "rlds"), "--from: got 'rlds', expected one of hdf5, lerobot"),
        (convert(source, tmp_path / "out", "--from", "hdf5", "--map", "x"), "expected FIELD=KEY"),
        (convert(source, tmp_path / "out", "--from", "hdf5", "--tcp-offset-m", "1,2"), "three numbers X,Y,Z"),
    )
    for result, text in cases:
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("rfedge: ")]
        assert text in line


def test_a_library_that_is_not_installed_names_the_extra(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", lengths=(5,), files=(0,))
    for hidden in ("pyarrow", "av"):
        result = convert(source, tmp_path / "out", "--from", "lerobot", hidden=hidden)
        assert result.returncode == 2
        assert f"got no {hidden}, expected the 'data' extra. Install it: pip install 'rfedge[data]'" in result.stderr
    assert not (tmp_path / "out").exists()
