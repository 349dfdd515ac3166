"""Traces that tests share: to trace is most of an export of `tiny`, and the same module gives the same graph."""

import hashlib
import shutil
from itertools import chain
from pathlib import Path

from torch import nn

from rfedge.contract import GraphContract
from rfedge.export import trace

_trace_graph = trace.trace_graph


class TraceStore:
    """`trace_graph`, which traces a module with its weights and settings once for each contract."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, module: nn.Module, contract: GraphContract, path: Path, *, example_size: int | None = None
    ) -> list[Path]:
        key = _digest(module.eval(), contract.model_dump_json(), str(example_size))
        known = self._folder / f"{key}.onnx"
        if not known.exists():
            files = _trace_graph(module, contract, path, example_size=example_size)
            if files == [path]:
                made = path.with_name(key)
                shutil.copy(path, made)
                made.replace(known)  # whole or not at all: other workers read here
            return files
        shutil.copy(known, path)
        return [path]


def _digest(module: nn.Module, *texts: str) -> str:
    digest = hashlib.sha256("".join(texts).encode())
    for name, part in module.named_modules():
        # All that a forward pass may read beside tensors: sizes, switches, configurations.
        settings = {
            key: getattr(value, "__qualname__", value) for key, value in vars(part).items() if not key.startswith("_")
        }
        digest.update(f"{name} {type(part)} {settings}".encode())
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()
