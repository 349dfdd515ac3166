"""Engines of a full-size policy, ahead of time: bytes, build time, memory, and what their layers compute in.

    python -m rfedge.benchmarks.studies.full_size_engines --preset M-3B --precision int8 --sm 86 --record FILE.json

The graph is the exporter's own, of the preset's real sizes; its numbers are random, every weight a window of its own in one
file of random bytes, so that a policy of 10 GB needs no 10 GB. Sizes, kernels and times of a build do not depend on them;
what a policy does with them is no question here. One engine in one process: the memory is the build's alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnx_ir as ir

from rfedge.benchmarks.studies.random_graphs import GraphPrecision, random_backbone, use_windows
from rfedge.bundle.engines import EngineTarget
from rfedge.config import PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.errors import RfedgeError
from rfedge.export.tensorrt.audit import audit_built, block_rows, fp32_rows
from rfedge.export.tensorrt.builder import BuiltEngine, build_engine
from rfedge.export.tensorrt.engine_form import default_islands, to_engine_form
from rfedge.export.tensorrt.options import BuilderSettings
from rfedge.export.tensorrt.prepare import finish_graph
from rfedge.nvidia.tensorrt import TensorRt, load_tensorrt
from rfedge.records.machine import Measurement, peak_rss_bytes, provenance
from rfedge.records.record import Record

ENGINES_SCHEMA_VERSION: Final = 1
GRAPH_NAME: Final = "backbone.onnx"
FACTS_NAME: Final = "facts.json"


class BlockLayers(Record):
    """Layers of each of `num_blocks` alike blocks, by precision, and how many of its attentions are one kernel."""

    blocks: str
    num_blocks: int
    layers: dict[str, int]
    num_attention: int
    num_fused: int


class WideLayers(Record):
    """Layers in fp32 with one reason."""

    reason: str
    blocks: str
    num_layers: int


class FullSizeEngine(Record):
    """One backbone as an engine."""

    preset: str
    precision: GraphPrecision
    floats: Literal["fp16", "fp32"]
    num_decoder_layers: int  # of the preset, or fewer where memory did not allow all
    builder: str
    sm: int
    text_tokens: int
    weights_in_fp32_bytes: int  # of the graph's weights, were they all fp32: what an fp32 engine holds at least
    graph_bytes: int  # constants of the graph that the builder was given
    # engine_bytes, weights_bytes: the plan, and the weights in it
    engine_bytes: int
    weights_bytes: int
    matmuls: dict[str, int]  # precision -> MatMuls with weights
    layers: dict[str, int]  # precision -> layers of the engine
    blocks: tuple[BlockLayers, ...]
    fp32: tuple[WideLayers, ...]
    islands: dict[str, int]  # reason -> ONNX nodes that were left in fp32
    # build_s, build_cpu_s: parser and builder, by the clock and in seconds of processors: the machine may have been busy
    build_s: float
    build_cpu_s: float
    peak_bytes: int | None  # most memory of the process that builds, graph and parser included


class EnginesReport(Measurement):
    format: Literal["rfedge-full-size-engines"] = "rfedge-full-size-engines"
    schema_version: Literal[1] = ENGINES_SCHEMA_VERSION
    engines: tuple[FullSizeEngine, ...]


class GraphFacts(Record):
    """Facts of a graph before it is built; see `FullSizeEngine`."""

    preset: str
    precision: GraphPrecision
    floats: Literal["fp16", "fp32"]
    num_decoder_layers: int
    text_tokens: int
    weights_in_fp32_bytes: int
    islands: dict[str, str]


def write_full_size_graph(
    name: str,
    precision: GraphPrecision,
    folder: Path,
    *,
    floats: Literal["fp16", "fp32"] = "fp16",
    num_layers: int | None = None,
) -> None:
    """Write the backbone of a preset to `folder`, as the builder gets it, with its facts; `floats` is what is not int8."""
    config = _config(name, num_layers)
    model = random_backbone(config, precision, seed=0)
    num_weights = _num_weights(model)
    islands = default_islands(model) if floats == "fp16" else {}
    if floats == "fp16":
        to_engine_form(model, islands)
    use_windows(model, folder / GRAPH_NAME, np.random.default_rng(0))
    graph = finish_graph(model)
    (folder / GRAPH_NAME).write_bytes(graph.SerializeToString())
    facts = GraphFacts(
        preset=name,
        precision=precision,
        floats=floats,
        num_decoder_layers=config.decoder.layers,
        text_tokens=config.decoder.text_length,
        weights_in_fp32_bytes=4 * num_weights,
        islands=islands,
    )
    facts.write(folder / FACTS_NAME)


def build_full_size_engine(folder: Path, *, sm: int) -> FullSizeEngine:
    """Build what `write_full_size_graph` wrote, for one compute capability, such as 86."""
    module = load_tensorrt("tensorrt-rtx")
    return build_for(module, module.ahead_of_time_target(sm), folder)[0]


def build_for(module: TensorRt, target: EngineTarget, folder: Path) -> tuple[FullSizeEngine, BuiltEngine]:
    """Build what `write_full_size_graph` wrote; as `build_full_size_engine`, and the engine itself."""
    facts = GraphFacts.model_validate_json((folder / FACTS_NAME).read_bytes())
    config = _config(facts.preset, facts.num_decoder_layers)
    path = folder / GRAPH_NAME
    graph = onnx.load(path, load_external_data=False)
    before = time.process_time()
    built = build_engine(module, graph, path, policy_contract(config).backbone, target, BuilderSettings())
    cpu_s = time.process_time() - before
    audit = audit_built(graph, built, facts.islands)
    engine = FullSizeEngine(
        **facts.model_dump(exclude={"islands"}),
        builder=f"{target.module} {target.version}",
        sm=target.sm,
        graph_bytes=audit.graph_weights_bytes,
        engine_bytes=audit.plan_bytes,
        weights_bytes=audit.engine_weights_bytes,
        matmuls=audit.precisions,
        layers=audit.layer_precisions,
        blocks=tuple(BlockLayers(**row._asdict()) for row in block_rows(audit)),
        fp32=tuple(WideLayers(reason=reason, blocks=blocks, num_layers=count) for reason, blocks, count in fp32_rows(audit)),
        islands=dict(Counter(facts.islands.values())),
        build_s=round(built.build_seconds, 1),
        build_cpu_s=round(cpu_s, 1),
        peak_bytes=peak_rss_bytes(),
    )
    return engine, built


def _config(name: str, num_layers: int | None) -> PolicyConfig:
    config = preset(name)
    if num_layers is None:
        return config
    return config.model_copy(update={"decoder": config.decoder.model_copy(update={"layers": num_layers})})


def _num_weights(model: ir.Model) -> int:
    """Return the number of elements of all matrices and kernels."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if tensor is not None and len(tensor.shape) >= 2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="M-3B")
    parser.add_argument("--precision", choices=GraphPrecision.__args__, default="int8")  # type: ignore[attr-defined]
    parser.add_argument("--floats", choices=("fp16", "fp32"), default="fp16", help="what is not int8")
    parser.add_argument("--sm", type=int, default=86, help="compute capability")
    parser.add_argument("--layers", type=int, help="decoder layers, where all of them need more memory than there is")
    parser.add_argument("--record", type=Path, help="file for the record; an engine more where it has some already")
    parser.add_argument("--build", type=Path, help="build the graph in this folder and print the engine")
    options: Any = parser.parse_args(arguments)
    try:
        if options.build is not None:
            sys.stdout.write(build_full_size_engine(options.build, sm=options.sm).model_dump_json() + "\n")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            write_full_size_graph(
                options.preset, options.precision, Path(folder), floats=options.floats, num_layers=options.layers
            )
            command = [sys.executable, "-m", "rfedge.benchmarks.studies.full_size_engines"]
            command += ["--build", folder, "--sm", str(options.sm)]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except RfedgeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if process.returncode:
        return process.returncode
    engine = FullSizeEngine.model_validate_json(process.stdout)
    if options.record is not None:
        add_to_record(options.record, engine)
    sys.stdout.write(engine.model_dump_json(indent=2) + "\n")
    return 0


def add_to_record(path: Path, engine: FullSizeEngine) -> None:
    """Write the record with one engine more; the rest of it is of this measurement."""
    before = EnginesReport.model_validate_json(path.read_bytes()).engines if path.exists() else ()
    EnginesReport(**provenance(), engines=(*before, engine)).write(path)


if __name__ == "__main__":
    sys.exit(main())
