"""How an int8 graph is made: ranges, folding, rounding, and the type of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from rfedge.errors import ConfigError, did_you_mean, one_of
from rfedge.export.int8.ranges import RANGE_METHODS, RangeMethod
from rfedge.records.plan import Option

SmoothQuant = float | Literal["search"] | None
_WORDS: Final = ("search", "off")


def parse_smooth_quant(text: str) -> SmoothQuant:
    """Return "search", None for "off", or the number in `text`; ConfigError for anything else."""
    if text == "off":
        return None
    if text == "search":
        return "search"
    try:
        return float(text)
    except ValueError:
        expected = f"a number from 0 to 1 or {did_you_mean(text, _WORDS)}"
        raise ConfigError("smooth_quant", got=repr(text), expected=expected, remedy="0.5 is usual.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """The defaults are what docs/adr/0008 measured best."""

    ranges: Annotated[RangeMethod, Option("Ranges of int8 activations: min-max, percentile or mse.")] = "min-max"
    percentile: float = 99.99  # share of all numbers that a "percentile" range holds
    # None leaves channels as they are
    smooth_quant: Annotated[
        SmoothQuant,
        Option(
            "Strength of SmoothQuant from 0 to 1, search (one for each MatMul) or off.",
            parse=parse_smooth_quant,
            text="search",
        ),
    ] = "search"
    centre: bool = True  # subtract the middle of each channel's range before rounding; the bias brings it back
    correct_bias: bool = True  # by each MatMul's mean error over the frames
    rounding: Literal["nearest", "compensated"] = "compensated"
    # TensorRT demands int8; uint8 (zero-point 128) has faster CPU kernels
    activation_type: Literal["int8", "uint8"] = "int8"
    split_packed: bool = True  # a MatMul for each part of q|k|v: the same numbers, no Split

    def __post_init__(self) -> None:
        one_of(RANGE_METHODS, self.ranges, "ranges")
        if not 50 <= self.percentile <= 100:
            raise ConfigError(
                "percentile", got=str(self.percentile), expected="50 to 100", remedy="99.9 to 99.999 are usual."
            )
        if isinstance(self.smooth_quant, float | int) and not 0 <= self.smooth_quant <= 1:
            raise ConfigError("smooth_quant", got=str(self.smooth_quant), expected="0 to 1", remedy="0.5 is usual.")

    def describe(self) -> str:
        """One line for the record of a calibration."""
        parts = [self.ranges if self.ranges != "percentile" else f"percentile {self.percentile:g}"]
        parts += ["symmetric", "per-tensor activations", "per-channel weights"]
        if self.centre:
            parts.append("centred channels")
        if self.smooth_quant is not None:
            parts.append(f"SmoothQuant {self.smooth_quant}")
        if self.correct_bias:
            parts.append("corrected bias")
        parts.append(f"{self.rounding} rounding")
        if self.activation_type != "int8":
            parts.append(f"{self.activation_type} activations")
        return ", ".join(parts)


# Ranges and rounding alone: what ONNX Runtime's `quantize_static` computes, bit for bit.
PLAIN: Final = Int8Options(smooth_quant=None, centre=False, correct_bias=False, rounding="nearest", split_packed=False)
