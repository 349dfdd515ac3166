"""Weights and fixtures of the original code: CLIP, the language models, OpenFlamingo and RoboFlamingo."""

from __future__ import annotations

from rfedge.model.original.parity import ParityReport, StageDifference, run_parity
from rfedge.model.original.plan import OriginalWeights, WeightsReport, load_original

__all__ = ["OriginalWeights", "ParityReport", "StageDifference", "WeightsReport", "load_original", "run_parity"]
