"""Which PyTorch block a node of an exported graph came from: the name that precisions and costs are reported under."""

from __future__ import annotations

import ast
import re
from typing import Final

UNNAMED: Final = "unnamed"
# Under which PyTorch's exporter writes the modules that a node came from.
SCOPES_KEY: Final = "pkg.torch.onnx.name_scopes"


def block_of_scopes(scopes: str | None) -> str:
    """Return a block such as "vision.blocks.3" from the list of modules that PyTorch's exporter writes beside a node."""
    if scopes is None:
        return UNNAMED
    modules = [scope for scope in ast.literal_eval(scopes) if scope]
    path = modules[-2] if len(modules) > 1 else modules[0]
    match = re.match(r"^(.*?\.\d+(?:\.(?:cross_attention|block))?)(?:\.|$)", path)
    return match.group(1) if match else path.split(".")[0]
