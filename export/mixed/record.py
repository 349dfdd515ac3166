"""What the search for a mixed plan leaves in a bundle: the evidence on every block. Reading it needs no PyTorch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from rfedge.export.mixed.blocks import kept_float


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockEvidence(_Record):
    """Why a block computes in what it does.

    Attributes:
        saved_ms: by int8, of one backbone call on the machine that exported; negative where int8 is slower.
        metrics: of the policy with this block alone in int8, against fp32.
    """

    precision: str
    reason: str
    saved_ms: float
    metrics: dict[str, float]


class SearchRecord(_Record):
    """mixed.json.

    Attributes:
        metrics: of the plan; on the same episodes `int8_metrics` of the precision int8 with its defaults, which is a plan
            made by hand, and `uniform_metrics` of int8 in every block.
        time_ratios: medians of a whole backbone call in turns, such as "mixed/int8".
        num_measured, num_reused: measurements of this run and of earlier ones.
    """

    budget_metric: str
    budget: float
    num_steps: int
    blocks: dict[str, BlockEvidence]
    metrics: dict[str, float]
    int8_metrics: dict[str, float]
    uniform_metrics: dict[str, float]
    time_ratios: dict[str, float]
    num_measured: int
    num_reused: int

    @property
    def keep_float(self) -> tuple[str, ...]:
        """What `quantize_int8` must leave alone."""
        return kept_float(self.blocks, [name for name, block in self.blocks.items() if block.precision == "int8"])
