"""The record of ways to make an int8 graph. Reading it needs no PyTorch."""

from __future__ import annotations

from typing import Literal

from rfedge.records.machine import Measurement
from rfedge.records.record import Record

__all__ = ["Int8RangesReport", "Int8Variant"]


class Int8Variant(Record):
    """One way over one set of frames.

    Attributes:
        name: of the way.
        method: as a manifest records it.
        keep_float: names that stay in float.
        seed: drew calibration frames and held-out episodes.
        num_int8, num_float: MatMuls with a weight, those that are never quantized left out.
        metrics: of the exporter's proof.
    """

    name: str
    method: str
    keep_float: tuple[str, ...]
    seed: int
    num_int8: int
    num_float: int
    metrics: dict[str, float]


class Int8RangesReport(Measurement):
    """The whole document."""

    format: Literal["rfedge-int8-ranges"] = "rfedge-int8-ranges"
    schema_version: int = 1
    policy: str
    num_calibration_frames: int
    num_steps: int
    variants: tuple[Int8Variant, ...]
