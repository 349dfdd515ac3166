"""int8 graphs of a backbone as other tools write them, each tool in a process of its own.

Both hold several copies of the graph, so they run only where these fit into memory. Optimum (`optimum-onnx`) calls
onnxruntime's quantizer with settings of its own: MatMuls of two activations and the convolution become int8 too.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

from rfedge.errors import first_line
from rfedge.io.atomic import atomic_directory
from rfedge.jobs.processes import worker_pool

DYNAMIC: Final = "onnxruntime-dynamic"
OPTIMUM: Final = "optimum-dynamic"
QUANTIZED: Final = "backbone_quantized.onnx"  # Optimum adds "_quantized" to the source's name
# Measured by hand, optimum-onnx 0.1.0 with onnxruntime 1.31 on 0.8 GB of weights: 3.6 GB at the peak, 0.6 of them libraries.
_COPIES: Final = 4


def missing_package(name: str) -> str | None:
    """Return why a tool cannot be imported, or None."""
    if name == OPTIMUM and (find_spec("optimum") is None or find_spec("optimum.onnxruntime") is None):
        return "optimum-onnx is not installed (pip install 'rfedge[baselines]')"
    return None


def missing_memory(source: Path) -> str | None:
    """Return why the graph at `source` is too large for this machine now, or None."""
    from rfedge.export.passes.graph_files import file_bytes

    size, available = file_bytes(source), psutil.virtual_memory().available + psutil.swap_memory().free
    if _COPIES * size > available:
        needed = f"needs {_COPIES * size / 1e9:.1f} GB to quantize {size / 1e9:.1f} GB"
        return f"{needed}, {available / 1e9:.1f} GB available, swap included"
    return None


def quantize(name: str, source: Path, folder: Path) -> str | None:
    """Write `folder` with `QUANTIZED`; return why there is none, or None."""
    reason = missing_package(name) or missing_memory(source)
    if reason is not None:
        return reason
    try:
        with atomic_directory(folder, overwrite=True) as temporary, worker_pool(1) as process:
            process.submit(_quantize, name, source, temporary).result()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _quantize(name: str, source: Path, folder: Path) -> None:
    logging.disable(logging.WARNING)  # advice to whoever calls them
    if name == DYNAMIC:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            folder / QUANTIZED,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        return
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(source.parent, file_name=source.name)
    quantizer.quantize(save_dir=folder, quantization_config=settings, use_external_data_format=True)
