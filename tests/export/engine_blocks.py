"""One block of each kind at its real size, with random weights, as graphs for the TensorRT builder."""

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from rfedge.config import preset
from rfedge.contract import GraphContract, TensorSpec
from rfedge.export.int8.options import PLAIN
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.passes.standard import apply_passes
from rfedge.export.quantize import quantize_int8
from rfedge.export.tensorrt.audit import StageAudit, audit_built
from rfedge.export.tensorrt.builder import BuilderSettings, BuiltEngine, build_engine
from rfedge.export.tensorrt.engine_form import default_islands
from rfedge.export.tensorrt.prepare import prepare_graph
from rfedge.export.trace import trace_graph
from rfedge.model.decoder import FusionDecoder
from rfedge.model.resampler import ResamplerLayer
from rfedge.model.vision import VisionBlock
from rfedge.nvidia.tensorrt import TensorRt
from tests.export.float_graphs import make_int4_weight, make_int8_weight

TOKENS: Final = 32
DECODERS: Final = {"mpt": "M-3B", "llama": "L-9B", "neox": "G-4B"}
KINDS: Final = ("vit", "resampler", *DECODERS)


def write_block(kind: str, path: Path, *, divide: int = 1) -> GraphContract:
    """Write the fp32 graph of one block to `path`: of ViT-L, the resampler, or a decoder with its cross-attention.

    Args:
        kind: one of `KINDS`.
        path: the graph.
        divide: every width by this much, for a test that only looks at numbers.
    """
    torch.manual_seed(0)
    module, inputs, output = _block(kind, divide)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    contract = GraphContract(
        inputs=tuple(_spec(name, shape) for name, shape in inputs.items()), outputs=(_spec("y", output),)
    )
    trace_graph(module, contract, path)
    apply_passes(path, path)
    return contract


def write_form(source: Path, target: Path, form: str, contract: GraphContract) -> None:
    """Write `source` as "fp16" (the same floats: the engine's form is made later), "int8", "int8-weight" or "int4"."""
    if form == "int8":
        frames = [contract.sample_inputs(np.random.default_rng(0))]
        quantize_int8(source, target, frames, keep_float=(), options=dataclasses.replace(PLAIN, split_packed=True))
    elif form == "int4":
        make_int4_weight(source, target, keep_float=())
    elif form == "int8-weight":
        make_int8_weight(source, target)
    else:
        target.write_bytes(source.read_bytes())


def build_in_fp16(module: TensorRt, path: Path, contract: GraphContract, *, sm: int = 86) -> tuple[BuiltEngine, StageAudit]:
    """Build the engine of a graph with fp16 for what is not int8."""
    islands = default_islands(read_graph(path))
    graph = prepare_graph(path, islands=islands)
    built = build_engine(module, graph, path, contract, module.ahead_of_time_target(sm), BuilderSettings())
    return built, audit_built(graph, built, islands)


def _spec(name: str, shape: tuple[int, int, int]) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, axes=("batch", "token", "width"))


Shape = tuple[int, int, int]


def _block(kind: str, divide: int) -> tuple[nn.Module, dict[str, Shape], Shape]:
    vision = preset("M-3B").vision
    width = vision.width // divide
    vision = vision.model_copy(update={"width": width, "heads": vision.heads // divide})
    latents = (2, 64, width)
    if kind == "vit":
        return _Named("vision.blocks", VisionBlock(vision)), {"x": (2, 257, width)}, (2, 257, width)
    if kind == "resampler":
        resampler = preset("M-3B").resampler.model_copy(update={"heads": 8 // divide})
        layer = ResamplerLayer(resampler, width)
        return _Named("resampler.layers", layer), {"latents": latents, "media": (2, 256, width)}, latents
    decoder = preset(DECODERS[kind]).decoder
    update = {"layers": 1, "feature": "last_block", "cross_attention_every": 1, "width": decoder.width // divide}
    update |= {"heads": decoder.heads // divide, "cross_attention_heads": decoder.cross_attention_heads // divide}
    update |= {name: getattr(decoder, name) // divide for name in ("mlp_width", "key_value_heads") if hasattr(decoder, name)}
    decoder = decoder.model_copy(update=update)
    text = (1, TOKENS, decoder.width)
    return _Decoder(FusionDecoder(decoder, width)), {"x": text, "media": (1, 128, width)}, text


class _Named(nn.Module):
    """A block under the name that it has in a policy, so that it is reported as such."""

    def __init__(self, path: str, block: nn.Module) -> None:
        super().__init__()
        self.path = path
        outer, inner = path.split(".")
        holder = nn.Module()
        holder.add_module(inner, nn.ModuleList([block]))
        self.add_module(outer, holder)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        block = self.get_submodule(f"{self.path}.0")
        return block(*inputs.values())  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, decoder: FusionDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
        return self.decoder.tokens(x, media)
