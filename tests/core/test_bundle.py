import hashlib
import json
from pathlib import Path

import pytest

from rfedge.bundle.artifact import (
    MANIFEST_NAME,
    Manifest,
    ParityRecord,
    PrecisionRecord,
    load_bundle,
    write_bundle,
    write_manifest,
)
from rfedge.config import preset
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError
from tests.errors import raises


def small_manifest() -> Manifest:
    config = preset("tiny")
    return Manifest(
        policy=config,
        contract=policy_contract(config),
        precision=PrecisionRecord(requested="fp32", blocks={"head": "fp32"}),
        parity=ParityRecord(num_steps=1, inputs="none", metrics={}, thresholds={}, passed=True),
        source={},
        versions={},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    with write_bundle(path) as writer:
        writer.add("head.onnx", "head").write_bytes(b"head graph")
        writer.add("tokenizer.json", "tokenizer").write_bytes(b"{}")
        writer.finish(small_manifest())
    return path


def test_a_bundle_is_read_back_as_written(bundle: Path) -> None:
    opened = load_bundle(bundle)
    assert opened.policy == preset("tiny")
    assert opened.path("head").read_bytes() == b"head graph"
    assert opened.size_bytes == 12
    with raises(ArtifactError, got="no backbone artifact", expected="one"):
        opened.path("backbone")


def test_one_changed_byte_is_an_error_that_names_the_file(bundle: Path) -> None:
    (bundle / "head.onnx").write_bytes(b"head grapj")
    with raises(ArtifactError, "bundle file head.onnx", got="sha256 ...", remedy="It was altered..."):
        load_bundle(bundle)


def test_a_truncated_file_is_an_error_that_names_it(bundle: Path) -> None:
    (bundle / "head.onnx").write_bytes(b"head")
    with raises(ArtifactError, "bundle file head.onnx", got="4 bytes", expected="10 bytes"):
        load_bundle(bundle)


def test_a_missing_file_is_an_error_that_names_it(bundle: Path) -> None:
    (bundle / "head.onnx").unlink()
    with raises(ArtifactError, got="no file head.onnx", expected="its head"):
        load_bundle(bundle)


def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    first, *others = manifest.artifacts
    outside = first.model_copy(update={"path": "../outside"})
    write_manifest(bundle, manifest.model_copy(update={"artifacts": (outside, *others)}))
    (bundle.parent / "outside").write_bytes(b"x" * 10)
    with raises(ArtifactError, expected="a path inside the bundle"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda text: "not json", "no sha256 of its own"),
        (lambda text: text.replace('"schema_version": 3', '"schema_version": 4'), "bytes that do not make its sha256"),
        (lambda text: "{\n" + text.split("\n", 2)[2].replace('_version": 3', '_version": 1'), "schema version 1"),
        (lambda text: text.replace('"frame_stride": 1', '"frame_stride": 2'), "bytes that do not make its sha256"),
        (lambda text: text.replace("\n", " ", 2), "no sha256 of its own"),
        (lambda text: text + " ", "bytes that do not make its sha256"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(bundle: Path, change, got: str) -> None:  # type: ignore[no-untyped-def]
    path = bundle / MANIFEST_NAME
    path.write_text(change(path.read_text()))
    with raises(ArtifactError, f"bundle {bundle}", got=f"manifest.json with {got}") as error:
        load_bundle(bundle)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"control_hz": 0.0}, "policy.control_hz: Input should be greater than 0"),
        ({"control_hz": -1.0}, "policy.control_hz: Input should be greater than 0"),
        ({"control_hz": 1e308}, "policy.control_hz: Input should be less than or equal to 1000"),
        ({"chunk_size": 8}, "Value error, contract: got another one than the policy's sizes make"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(bundle: Path, changes: dict[str, float], got: str) -> None:
    manifest = load_bundle(bundle).manifest
    write_manifest(bundle, manifest.model_copy(update={"policy": manifest.policy.model_copy(update=changes)}))
    with raises(ArtifactError, got=f"manifest.json with {got}"):
        load_bundle(bundle)


def test_a_file_that_nobody_vouches_for_is_refused(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "plan").touch()
    load_bundle(bundle)
    for name in ("head.onnx.data", "weights/more", ".hidden"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).touch()
        with raises(ArtifactError, got=f"file {name}, which its manifest does not list", expected="the 2 files..."):
            load_bundle(bundle)
        (bundle / name).unlink()
    (bundle / "linked").symlink_to(bundle.parent)
    with raises(ArtifactError, got="file linked, which its manifest does not list"):
        load_bundle(bundle)


def test_a_writer_lists_all_that_it_wrote(tmp_path: Path) -> None:
    with raises(ArtifactError, got="file head.onnx.data..."), write_bundle(tmp_path / "bundle") as writer:
        writer.add("head.onnx", "head").touch()
        (writer.root / "head.onnx.data").touch()
        writer.finish(small_manifest())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    with raises(ArtifactError, got="no folder", expected="a folder written by `rfedge export`"):
        load_bundle(tmp_path / "nowhere")
    with raises(ArtifactError, got=f"no {MANIFEST_NAME}"):
        load_bundle(tmp_path)


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_bundle(tmp_path / "bundle") as writer:
        writer.add("head.onnx", "head").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_former_schema_version_is_read(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    former = json.loads(path.read_text()) | {"schema_version": 2}
    sentences = {
        "vision.blocks.0": ("int8", {"int8": 1}),
        "resampler.layers.0": ("int8 (2 of 5 MatMuls)", {"int8": 2, "fp32": 3}),
        "resampler.layers.1": (
            "int4-weight (2 of 4 MatMuls), int8-weight (2 of 4 MatMuls)",
            {"int4-weight": 2, "int8-weight": 2},
        ),
        "head": ("int8 on CPUs", {"fp32": 1}),
    }
    former["precision"] = {"requested": "int8", "blocks": {block: text for block, (text, _) in sentences.items()}}
    text = json.dumps(former | {"sha256": "0" * 64}, indent=2).encode()
    path.write_bytes(text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1))
    manifest = load_bundle(bundle).manifest
    assert {block: (str(found), found.matmuls) for block, found in manifest.precision.blocks.items()} == sentences
    write_manifest(bundle, manifest)
    assert load_bundle(bundle).manifest == manifest
    assert json.loads(path.read_text())["precision"]["blocks"]["resampler.layers.0"] == {
        "matmuls": {"int8": 2, "fp32": 3},
        "on_cpus": None,
    }
