"""Engines of real size, by the study on `tiny`; what its records must show."""

from pathlib import Path

import pytest

from rfedge.benchmarks.studies.full_size_engines import (
    EnginesReport,
    FullSizeEngine,
    add_to_record,
    build_full_size_engine,
    write_full_size_graph,
)
from rfedge.benchmarks.studies.random_graphs import GraphPrecision
from rfedge.config import preset
from tests.export.tensorrt_bundles import load_rtx

RECORDS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("engine_*_aot_*.json"))


@pytest.mark.parametrize("precision", ["int8", pytest.param("int4-weight", marks=pytest.mark.slow)])
def test_a_graph_on_random_bytes_is_built_as_its_precision_says(precision: GraphPrecision, tmp_path: Path) -> None:
    load_rtx()
    write_full_size_graph("tiny", precision, tmp_path)
    engine = build_full_size_engine(tmp_path, sm=86)
    # two vision blocks, one resampler layer, two decoder blocks with cross-attention
    assert (sum(row.num_blocks * row.num_attention for row in engine.blocks)) == 7
    assert all(row.num_fused == row.num_attention for row in engine.blocks)
    assert ("int8" in engine.matmuls) == (precision == "int8")
    assert engine.matmuls["fp32"] == 2, "the camera resize of each camera, as MatMuls with a weight"
    assert sum(row.num_layers for row in engine.fp32) == engine.layers["fp32"]
    assert engine.weights_bytes < 0.6 * engine.weights_in_fp32_bytes
    add_to_record(tmp_path / "record.json", engine)
    add_to_record(tmp_path / "record.json", engine)
    assert EnginesReport.model_validate_json((tmp_path / "record.json").read_bytes()).engines == (engine, engine)


def engines() -> list[FullSizeEngine]:
    return [engine for path in RECORDS for engine in EnginesReport.model_validate_json(path.read_bytes()).engines]


@pytest.mark.parametrize("engine", engines(), ids=lambda engine: f"{engine.preset}-{engine.precision}-sm{engine.sm}")
def test_the_full_size_engines_fuse_attention_and_keep_fp32_to_islands(engine: FullSizeEngine) -> None:
    rows = {row.blocks: row for row in engine.blocks}
    assert sum(row.num_blocks for name, row in rows.items() if name.startswith("vision.blocks")) == 24
    assert all(row.num_fused == row.num_attention for row in engine.blocks)
    assert engine.num_decoder_layers == preset(engine.preset).decoder.layers
    assert engine.layers["fp32"] <= 0.04 * sum(engine.layers.values())
    assert all(row.reason for row in engine.fp32)
    share = {"int8": 0.255, "mixed": 0.295, "int4-weight": 0.15, "fp16": 0.505}[engine.precision]
    assert engine.engine_bytes <= share * engine.weights_in_fp32_bytes
    assert engine.build_cpu_s <= 120
    assert engine.peak_bytes is not None
    assert engine.peak_bytes <= 3 * engine.engine_bytes
