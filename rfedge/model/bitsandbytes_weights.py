"""Weights of the backbone's MatMuls in the formats of bitsandbytes: `nf4` (QLoRA's 4 bits) and `llm-int8` (LLM.int8()).

Both live in PyTorch alone, on CPUs and GPUs; nothing of them is exported. They save memory: nf4 keeps half a byte a weight
and a scale for 64 of them, llm-int8 a byte and a scale a row, with activations above a threshold multiplied in floats.
Sources: Dettmers et al., QLoRA (2023) and LLM.int8() (2022).
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final

import torch
from torch import nn

from rfedge.errors import BackendUnavailableError, first_line, one_of

WEIGHT_FORMATS: Final = ("nf4", "llm-int8")
# Activations beyond it are outliers that int8 would spoil; the paper's value.
_OUTLIER_THRESHOLD: Final = 6.0
# Weights of one scale. A row that is not whole blocks has no kernel on a CPU with avx512_bf16 (bitsandbytes 0.50).
_NF4_BLOCK: Final = 64


def keep_weights_in(module: nn.Module, weights: str, compute_dtype: torch.dtype) -> int:
    """Replace the linear layers below `module` by ones with quantized weights; return how many.

    For nf4 layers whose inputs are no multiple of 64 stay. `compute_dtype` is what nf4 weights become for a MatMul.

    Raises:
        ConfigError: an unknown format.
        BackendUnavailableError: bitsandbytes is not installed, or has no kernels for this machine.
    """
    one_of(WEIGHT_FORMATS, weights, "weights")
    library = import_bitsandbytes()
    layers = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and (weights != "nf4" or child.in_features % _NF4_BLOCK == 0)
    ]
    for parent, name, layer in layers:
        setattr(parent, name, _quantized(library, layer, weights, compute_dtype))
    return len(layers)


def _quantized(library: Any, layer: nn.Linear, weights: str, compute_dtype: torch.dtype) -> nn.Module:
    size = (layer.in_features, layer.out_features)
    has_bias = layer.bias is not None
    data = layer.weight.data
    if weights == "nf4":
        made = library.nn.Linear4bit(*size, bias=has_bias, compute_dtype=compute_dtype, quant_type="nf4")
        made.weight = library.nn.Params4bit(data, requires_grad=False, quant_type="nf4")
    else:
        made = library.nn.Linear8bitLt(*size, bias=has_bias, has_fp16_weights=False, threshold=_OUTLIER_THRESHOLD)
        made.weight = library.nn.Int8Params(data, requires_grad=False, has_fp16_weights=False)
    if has_bias:
        made.bias = layer.bias
    moved: nn.Module = made.to(data.device)  # the move is what quantizes
    return moved.eval()


def stored_bytes(module: nn.Module) -> int:
    """Return what parameters and buffers take in memory, the scales of quantized weights included."""
    tensors = [*module.parameters(), *module.buffers()]
    for layer in module.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)  # of nf4
        tensors += [state.absmax, state.code] if state is not None else []
        scales = getattr(getattr(layer, "weight", None), "SCB", None)  # of llm-int8
        tensors += [scales] if isinstance(scales, torch.Tensor) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def import_bitsandbytes() -> Any:
    # It tells on import which optional kernels it did not find; that is no news to a user.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # a missing module, or a native library of it that does not load
        expected, remedy = "an installed library", "Install it: pip install 'rfedge[bnb]'."
        raise BackendUnavailableError("bitsandbytes", got=first_line(error), expected=expected, remedy=remedy) from None
