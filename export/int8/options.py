"""How an int8 graph is made: ranges, folding, rounding, and the type of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from rfedge.errors import ConfigError, did_you_mean
from rfedge.export.int8.ranges import RangeMethod, check_range_method
from rfedge.records.plan import Option

SmoothQuant = float | Literal["search"] | None
_WORDS: Final = ("search", "off")


def parse_smooth_quant(text: str) -> SmoothQuant:
    """Return "search", None for "off", or the number in `text`.

    Raises:
        ConfigError: it is none of these.
    """
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
    """The defaults are what docs/adr/0008 measured best.

    Attributes:
        ranges: how a symmetric range is chosen from the calibration frames.
        percentile: share of all numbers that a "percentile" range holds.
        smooth_quant: strength of SmoothQuant, 0 to 1; "search" chooses one per tensor by the error expected of its
            MatMuls; None leaves channels as they are.
        centre: subtract the middle of each channel's range before rounding; it reaches the output in float, by the bias.
        correct_bias: correct each MatMul's mean error over the calibration frames in the bias.
        rounding: of weights, "nearest" or "compensated" (`rounding.py`).
        activation_type: "int8" with zero-point 0, which TensorRT demands, or "uint8" with zero-point 128: the same
            arithmetic for faster kernels of some processors.
        split_packed: give each part of a packed projection (q|k|v) a MatMul of its own: the same numbers, no Split.
    """

    ranges: Annotated[RangeMethod, Option("Ranges of int8 activations: min-max, percentile or mse.")] = "min-max"
    percentile: float = 99.99
    smooth_quant: Annotated[
        SmoothQuant,
        Option(
            "Strength of SmoothQuant from 0 to 1, search (one for each MatMul) or off.",
            parse=parse_smooth_quant,
            text="search",
        ),
    ] = "search"
    centre: bool = True
    correct_bias: bool = True
    rounding: Literal["nearest", "compensated"] = "compensated"
    activation_type: Literal["int8", "uint8"] = "int8"
    split_packed: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ConfigError: an unknown method, or a number out of its range.
        """
        check_range_method(self.ranges)
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
