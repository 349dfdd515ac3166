"""`rfedge doctor` and `rfedge inspect` as a robot meets them: real processes, without torch and the exporter."""

import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from rfedge.cli.app import app
from rfedge.errors import RfedgeError

# A robot has neither; None makes every import of them fail.
ROBOT = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx_ir', 'onnxscript', 'matplotlib')))"


def rfedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    code = f"{ROBOT}; from rfedge.cli.app import main; main({words!r})"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )


def test_the_doctor_prints_one_document() -> None:
    result = rfedge("doctor", "--json")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    assert document["healthy"] is True
    assert document["facts"]["onnxruntime"]["value"]["providers"]["CPUExecutionProvider"] is None
    assert "precisions" in result.stderr


def test_the_doctor_prints_tables() -> None:
    result = rfedge("doctor")
    assert result.returncode == 0, result.stderr
    assert "CPUExecutionProvider" in result.stdout
    assert "not a Jetson" in result.stdout or "JetPack" in result.stdout


def test_a_bundle_is_inspected(bundle: Path) -> None:
    result = rfedge("inspect", bundle, "--device", "orin-nano-8gb", "--device", "agx-orin-64gb", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["counted_from"] == "graphs"
    # Graphs made by hand have no shapes between their nodes: what cannot be counted is named, not left out in silence.
    assert document["uncounted"]
    assert all(name.startswith("MatMul ") for name in document["uncounted"])
    assert f"not counted: {document['uncounted'][0]}" in result.stderr
    assert document["stages"]["head"]["macs"] > 0
    assert [item["device"]["name"] for item in document["predictions"]] == ["orin-nano-8gb", "agx-orin-64gb"]
    assert all(item["predicted"] is True for item in document["predictions"])
    assert document["predictions"][0]["high_ms"] > document["predictions"][1]["high_ms"]
    assert "PREDICTED, not measured" in result.stderr
    assert "agx-orin-64gb MAXN" in result.stderr, "names are whole"


def test_a_bundle_is_run_beside_its_prediction_for_this_cpu(bundle: Path) -> None:
    result = rfedge("inspect", bundle, "--device", "this-cpu", "--threads", "1", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["measured"]["p50_ms"] > 0
    assert "this-cpu: MEASURED" in result.stderr
    assert "% off" in result.stderr


def test_a_full_size_policy_is_inspected_without_a_file() -> None:
    result = rfedge("inspect", "--config", "M-3B", "--precision", "fp16", "--device", "orin-nano-8gb", "--blocks")
    assert result.returncode == 0, result.stderr
    assert "decoder.layers.22.block" in result.stdout
    assert "decoder.layers.23" not in result.stdout, "the dead block costs nothing"
    assert "PREDICTED" in result.stdout


def test_a_picture_without_matplotlib_is_one_line(bundle: Path, tmp_path: Path) -> None:
    result = rfedge("inspect", bundle, "--device", "thor-t5000", "--plot", tmp_path / "roofline.png")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "rfedge: --plot: got no matplotlib, expected the 'plots' extra. pip install 'rfedge[plots]'." in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_answered(bundle: Path) -> None:
    for arguments, words in (
        ((), "got neither BUNDLE nor --config"),
        ((bundle, "--config", "M-3B"), "got both BUNDLE and --config"),
        ((bundle, "--device", "orin-nano"), "did you mean 'orin-nano-8gb' or 'orin-nano-8gb-super'?"),
    ):
        result = CliRunner().invoke(app, ["inspect", *(str(argument) for argument in arguments)])
        assert isinstance(result.exception, RfedgeError)
        assert words in str(result.exception)
