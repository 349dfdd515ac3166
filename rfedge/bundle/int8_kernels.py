"""ONNX Runtime's switches that decide whether a Q/DQ graph runs on integer kernels; exporter and runtime share them."""

from __future__ import annotations

import functools
import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from rfedge.errors import first_line

logger = logging.getLogger(__name__)
Session = TypeVar("Session")

DISABLED_OPTIMIZERS: Final = (
    # Merging MatMul and Add into Gemm hides the Q/DQ pattern from the kernels: 2.4 times slower on playtable-small.
    "MatMulAddFusion",
    # It merges equal QuantizeLinear nodes, and a MatMul whose Q has several readers stays in fp32.
    "CommonSubexpressionElimination",
)
INTEGER_KERNELS: Final = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul")
# x86 without VNNI multiplies uint8 by int8 in pairs whose 16-bit sum saturates: a MatMul of ordinary numbers is then off by
# a tenth. With this session option onnxruntime rewrites int8 weights to uint8, whose kernels are exact there.
EXACT_INT8: Final = "session.x64quantprecision"
# The first onnxruntime whose CPU kernels run ONNX's Attention beside quantizers of the same opset, 23; on Python 3.10 pip
# finds none.
_KNOWS_ATTENTION: Final = (1, 24)
# y = MatMulInteger(a, b), a uint8 (rows, 2), b int8 (2, 1), as ONNX bytes: it is tried without importing `onnx`.
_PROBE: Final = bytes.fromhex(
    "08083a580a180a01610a0162120179220d4d61744d756c496e74656765721201675a110a0161120c0a0a080212060a000a0208025a13"
    "0a0162120e0a0c080312080a0208020a02080162110a0179120c0a0a080612060a000a02080142040a001011"
)


@functools.cache
def int8_saturates() -> bool:
    """Whether uint8 x int8 kernels of onnxruntime saturate on this CPU, found by one MatMul of the largest numbers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(_PROBE, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"a": np.full((4, 2), 255, np.uint8), "b": np.full((2, 1), 127, np.int8)})
    return bool((y != 2 * 255 * 127).any())


def open_exact(make_options: Callable[[], Any], open_session: Callable[[Any], Session], graph: Path) -> tuple[Session, bool]:
    """Open a session with exact int8 kernels where the plain ones saturate; return it and whether its kernels are exact.

    A graph whose kernels share a weight or a zero point has no exact kernels in onnxruntime: it opens with a warning.
    """
    options = make_options()
    # By the names of operators. onnxruntime 1.31's rewrite breaks weights that are dequantized per channel and multiplied
    # in float, so a graph that only dequantizes is left alone.
    if not int8_saturates() or not _holds(graph, b"QuantizeLinear", b"MatMulInteger", b"DynamicQuantize"):
        return open_session(options), True
    options.add_session_config_entry(EXACT_INT8, "1")
    try:
        return open_session(options), True
    except Exception as error:  # onnxruntime's error classes share no base of their own
        reason = first_line(error)[-80:]
    session = open_session(make_options())
    logger.warning(
        "%s: this CPU has no VNNI, and onnxruntime has no exact int8 kernels for this graph (%s): actions may be further "
        "off than the bundle's proof says; export the bundle again, or run an fp32 bundle here",
        graph.name,
        reason,
    )
    return session, False


@functools.cache
def knows_attention() -> bool:
    """Whether this onnxruntime runs graphs with ONNX's Attention on the CPU."""
    import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return (int(major), int(minor)) >= _KNOWS_ATTENTION


def runs_cpu_form(graph: Path) -> bool:
    """Whether this onnxruntime runs the CPU form of an int8 graph; the Q/DQ form, slower, runs on every one."""
    if knows_attention() or not _holds(graph, b"\x22\x09Attention"):  # an operator's name, as protobuf writes it
        return True
    logger.warning(
        "%s: onnxruntime before %s runs the bundle's slower Q/DQ graph in its place; update onnxruntime",
        graph.name,
        ".".join(map(str, _KNOWS_ATTENTION)),
    )
    return False


def _holds(graph: Path, *texts: bytes) -> bool:
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(text) >= 0 for text in texts)
