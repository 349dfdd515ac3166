"""What a GPU is predicted by: the floats that the manifest names for TensorRT, and what audits of engines found."""

from pathlib import Path

import pytest

from rfedge.bundle.artifact import Bundle, EngineForm, TensorRtRecord
from rfedge.bundle.engines import EngineFolder, EngineKey, EngineRecord, EngineTarget
from rfedge.config import preset
from rfedge.runtimes.roofline.graph_work import bundle_work, engine_shares, engine_work
from rfedge.runtimes.roofline.report import inspect_bundle
from tests.runtimes.inspection.traced_policies import traced_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny` in fp32 whose manifest gives the backbone of its engines fp16."""
    traced = traced_bundle(tmp_path_factory.mktemp("tiny"), preset("tiny"))
    forms = {"backbone": EngineForm(floats="fp16"), "head": EngineForm(floats="fp32", reason="asked")}
    record = TensorRtRecord.model_validate({"graphs": forms})
    return Bundle(traced.root, traced.manifest.model_copy(update={"tensorrt": record}))


def write_engines(bundle: Bundle, *, num_fused: int) -> None:
    target = EngineTarget(module="tensorrt-rtx", version="1.7", sm=86, ahead_of_time=True)
    record = EngineRecord(
        key=EngineKey(graph_sha256="a", weights_sha256={}, target=target, builder={}),
        plan="backbone.plan", sha256="b", size_bytes=1, precisions={}, build_seconds=1.0,
        layers={"fp16": 40, "fp32": 10}, num_attention=5, num_fused=num_fused,
    )  # fmt: skip
    folder = bundle.root / "engines" / target.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(EngineFolder(target=target, stages={"backbone": record}).model_dump_json())


def test_floats_of_the_manifest_halve_what_moves_and_fused_attention_keeps_its_logits(bundle: Bundle) -> None:
    work = bundle_work(bundle)
    built = engine_work(work, bundle)
    attention = [matmul for matmul in work.matmuls if matmul.logit_bytes]
    # q k and p v: of two vision blocks, one resampler layer, two decoder blocks with cross-attention
    assert len(attention) == 2 * (2 + 1 + 2 * 2)
    for before, after in zip(work.matmuls, built.matmuls, strict=True):
        if before.stage in ("preprocess", "head"):
            assert after == before
            continue
        assert after.arithmetic == "fp16"
        assert after.activation_bytes == (before.activation_bytes - before.logit_bytes) // 2
        if before.parameters:
            assert after.weight_bytes == before.weight_bytes // 2
    older = Bundle(bundle.root, bundle.manifest.model_copy(update={"tensorrt": None}))
    assert engine_work(work, older) is work


def test_audits_say_how_many_launches_and_whether_attention_is_fused(bundle: Bundle, tmp_path: Path) -> None:
    assert engine_shares(bundle) == ()
    write_engines(bundle, num_fused=5)
    (shares,) = engine_shares(bundle)
    assert (shares.num_launches, shares.num_attention, shares.num_fused) == (50, 5, 5)
    fused = engine_work(bundle_work(bundle), bundle).total().activation_bytes
    write_engines(bundle, num_fused=4)
    assert engine_work(bundle_work(bundle), bundle).total().activation_bytes > fused
    inspection = inspect_bundle(bundle, devices=("orin-nano-8gb",))
    assert inspection.engines[0].num_fused == 4
    assert inspection.document()["engines"][0]["num_launches"] == 50
    assert inspection.engine_work is not None
    built = engine_work(bundle_work(bundle), bundle).operators
    assert sum(count for stage, count in built.items() if stage != "head") == pytest.approx(50, abs=2), "as audited"
    assert inspection.predictions[0].low_ms > 0
