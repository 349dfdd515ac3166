"""Time that int8 saves in each block on this machine, and time of whole graphs, measured side by side.

ONNX Runtime's profile has a time for every node. Each graph is first optimised and written back with names of our own,
because fused nodes lose theirs; a tensor keeps its name, and tells which block its node belongs to.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from rfedge.arrays import Float64
from rfedge.bundle.int8_kernels import EXACT_INT8, int8_saturates
from rfedge.export.mixed.blocks import block_of_values
from rfedge.export.precision_audit import write_optimised
from rfedge.jobs.progress import Count
from rfedge.recurrence import Arrays

_WARM_UP: Final = 3
_SUFFIX: Final = "_kernel_time"
# What the runtime makes of a MatMul with its bias: a Gemm between two reshapes, on tensors of its own.
_OF_FUSED_MATMUL: Final = ("Gemm", "Reshape")


def profile_blocks(
    graphs: Sequence[Path],
    blocks: Mapping[str, Sequence[str]],
    frames: Sequence[Arrays],
    *,
    num_rounds: int,
    on_round: Count = lambda *_: None,
) -> list[dict[str, Float64]]:
    """Return, for each form of one backbone, block -> milliseconds of its nodes in each round, (num_rounds,)."""
    with tempfile.TemporaryDirectory() as folder:
        opened = [_Profiled(graph, blocks, Path(folder) / str(index)) for index, graph in enumerate(graphs)]
        for done in range(_WARM_UP + num_rounds):
            for profiled in opened:
                profiled.run(frames[done % len(frames)])
            on_round(max(done + 1 - _WARM_UP, 0), num_rounds)
        return [profiled.times_ms(_WARM_UP, num_rounds) for profiled in opened]


def saved_ms(in_float: Mapping[str, Float64], in_int8: Mapping[str, Float64]) -> dict[str, float]:
    """Return block -> milliseconds that int8 saves: the median over rounds, whose two runs saw the same machine."""
    return {block: float(np.median(in_float[block] - in_int8[block])) for block in in_float}


def call_times_ms(
    graphs: Mapping[str, Path], frames: Sequence[Arrays], *, num_rounds: int, on_round: Count = lambda *_: None
) -> dict[str, list[float]]:
    """Return name -> milliseconds of each call, the graphs taking turns; sessions are opened as a bundle's are."""
    sessions = {
        name: onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
        for name, path in graphs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in graphs}
    rng = np.random.default_rng(0)  # a fixed order would give each graph the same one before it
    for done in range(_WARM_UP + num_rounds):
        for name in rng.permutation(list(sessions)):
            began = perf_counter()
            sessions[name].run(None, dict(frames[done % len(frames)]))
            elapsed = perf_counter() - began
            if done >= _WARM_UP:
                times[name].append(1e3 * elapsed)
        on_round(max(done + 1 - _WARM_UP, 0), num_rounds)
    return times


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads of a session that wait by spinning would take the processor from the next session's call.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if int8_saturates():  # as a bundle's session does there: exact kernels are the slower ones
        options.add_session_config_entry(EXACT_INT8, "1")
    return options


class _Profiled:
    def __init__(self, graph: Path, blocks: Mapping[str, Sequence[str]], folder: Path) -> None:
        folder.mkdir()
        self._blocks = list(blocks)
        optimised = write_optimised(graph, folder)
        of_value = block_of_values(graph, blocks)
        model = onnx.load(optimised, load_external_data=False)
        self._block_of_node = _name_nodes(model, of_value)
        onnx.save(model, optimised)
        options = _options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self._session = onnxruntime.InferenceSession(str(optimised), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Arrays) -> None:
        self._session.run(None, dict(inputs))

    def times_ms(self, num_skipped: int, num_rounds: int) -> dict[str, Float64]:
        """End the profile; return block -> (num_rounds,)."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        of_node: dict[str, list[float]] = {}
        for event in sorted(events, key=lambda event: float(event.get("ts", 0))):
            name = str(event.get("name", ""))
            if name.endswith(_SUFFIX):
                of_node.setdefault(name.removesuffix(_SUFFIX), []).append(float(event["dur"]) / 1e3)
        times = {block: np.zeros(num_rounds) for block in self._blocks}
        for node, durations in of_node.items():
            block = self._block_of_node.get(node)
            if block is not None:
                times[block] += np.array(durations[num_skipped : num_skipped + num_rounds])
        return times


def _name_nodes(model: onnx.ModelProto, block_of_value: Mapping[str, str]) -> dict[str, str]:
    """Give every node a name of our own and return name -> block; a node of no block is not in it."""
    readers: dict[str, set[str | None]] = {}
    found = {}
    for index, node in reversed(list(enumerate(model.graph.node))):
        node.name = f"node{index}"
        block = next((block_of_value[name] for name in node.output if name in block_of_value), None)
        if block is None and node.op_type in _OF_FUSED_MATMUL:
            reading = {reader for name in node.output for reader in readers.get(name, ())}
            block = reading.pop() if len(reading) == 1 else None
        if block is not None:
            found[node.name] = block
        for name in node.input:
            readers.setdefault(name, set()).add(block)
    return found
