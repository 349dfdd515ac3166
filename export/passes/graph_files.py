"""Read graphs without their weights, and write them one weight at a time, so that no graph needs its size in memory.

Small graphs hold their weights; larger ones keep them in one file beside the graph, as ONNX's external data.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir

from rfedge.errors import ArtifactError, first_line
from rfedge.export.passes.graph_pass import weight_bytes
from rfedge.export.passes.graph_queries import tensor_of, tensor_shape
from rfedge.io.atomic import atomic_file
from rfedge.jobs.progress import Count

# ONNX files are protobufs, which end at 2 GiB; `rfedge.export.trace` keeps to it too.
INLINE_LIMIT_BYTES: Final = 1_500_000_000
# Smaller tensors (scales, shapes) stay in the graph: runtimes read shapes before they open the weights.
_SMALLEST_EXTERNAL_BYTES: Final = 1024
_ALIGNMENT: Final = 4096  # so that a runtime can map each weight


def read_graph(path: Path) -> ir.Model:
    """Open a graph; weights in a file beside it are mapped, not read. ArtifactError where it is no ONNX graph."""
    try:
        return ir.load(path)
    except (OSError, ValueError, onnx.checker.ValidationError, ir.serde.SerdeError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        if type(error).__name__ == "DecodeError":  # protobuf's; its module is not ours to depend on
            raise _unreadable(path, error) from error
        raise


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    text = first_line(error)
    return ArtifactError(f"graph {path}", got=text, expected="an ONNX file", remedy="Export it again.")


def write_graph(
    model: ir.Model, target: Path, *, on_weight: Count = lambda *_: None, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> list[Path]:
    """Write `model` to `target`, which it may have been read from; return every file written, the graph first.

    A graph with a weight file names that file, so it cannot be renamed later.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    data = weight_file(target)
    external = weight_bytes(model.graph) > inline_limit_bytes
    with contextlib.ExitStack() as files:
        graph_file = files.enter_context(atomic_file(target))
        if external:
            # Entered last, so renamed first: a graph never names weights that are not there.
            data_file = files.enter_context(atomic_file(data))
            _write_weights(model.graph, data_file, data, on_weight)
        else:
            for done, value in enumerate(model.graph.initializers.values(), start=1):
                value.const_value = _evaluated(value)
                on_weight(done, len(model.graph.initializers))
        onnx.save(ir.to_proto(model), graph_file)
    if not external:
        data.unlink(missing_ok=True)  # the weights of an older graph of this name
    return [target, data] if external else [target]


def graph_files(path: Path) -> list[Path]:
    """Return those of a graph and of the weight file beside it that exist, the graph first."""
    return [file for file in (path, weight_file(path)) if file.exists()]


def remove_graph(path: Path) -> None:
    """Remove a graph and the weights beside it."""
    for file in graph_files(path):
        file.unlink()


def weight_file(path: Path) -> Path:
    """Return where the weights of the graph at `path` lie if they are not in it."""
    return path.with_name(path.name + ".data")


def file_bytes(path: Path) -> int:
    """Return the size of a graph with the weight file beside it, if it has one."""
    return sum(file.stat().st_size for file in graph_files(path))


def _write_weights(graph: ir.Graph, path: Path, final_path: Path, on_weight: Count) -> None:
    with path.open("wb") as file:
        for done, value in enumerate(graph.initializers.values(), start=1):
            tensor = _evaluated(value)
            if tensor.nbytes >= _SMALLEST_EXTERNAL_BYTES:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                offset, content = file.tell(), tensor.tobytes()
                file.write(content)
                tensor = ir.ExternalTensor(
                    final_path.name,
                    offset,
                    len(content),
                    tensor.dtype,
                    shape=ir.Shape(tensor_shape(tensor)),
                    name=str(value.name),
                    base_dir=final_path.parent,
                )
            value.const_value = tensor
            on_weight(done, len(graph.initializers))


def _evaluated(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor in memory under the name of its value; the graph's weights are read here, one at a time."""
    tensor = tensor_of(value)
    if isinstance(tensor, ir.LazyTensor):
        tensor = tensor.raw()
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    tensor.name = str(value.name)
    return tensor
