"""Options of `rfedge build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from rfedge.export.tensorrt.profiles import Profile, parse_text_lengths
from rfedge.nvidia.tensorrt import TARGETS, parse_compute_capabilities
from rfedge.records.plan import Option, Uses


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSettings:
    """Limits and choices of the builder; all of them are part of the cache key."""

    workspace_mib: Annotated[int, Option("Scratch memory a layer may use at run time; 0: no limit.", min=0)] = 0
    builder_memory_mib: Annotated[int, Option("Memory that trying kernels may use; 0: no limit.", min=0)] = 0
    optimization_level: Annotated[
        int, Option("0 is the quickest build, 5 the longest search for fast kernels.", min=0, max=5)
    ] = 3
    tf32: Annotated[bool, Option("Let fp32 MatMuls round their inputs to TF32.")] = False

    def key(self, profiles: Sequence[Profile]) -> dict[str, str | int | bool]:
        """Return the part of the cache key that is not graph, weights or target."""
        from rfedge.export.tensorrt.prepare import PREPARATION  # onnx, which options do without

        names = profiles[0] if profiles else ()
        return {
            **dataclasses.asdict(self),
            "strongly_typed": True,
            "preparation": PREPARATION,
            **{f"steps_{name}": ",".join("/".join(map(str, profile[name])) for profile in profiles) for name in names},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    target: Annotated[
        str,
        Option(
            "tensorrt or tensorrt-rtx; without it tensorrt, and tensorrt-rtx with --aot.",
            panel="Engines",
            choices=tuple(TARGETS),
            text="",
        ),
    ] = "tensorrt"
    ahead_of_time: Annotated[
        tuple[int, ...],
        Option(
            "Build without the GPU, for these compute capabilities: sm86,sm89.",
            flag="--aot",
            parse=parse_compute_capabilities,
            text="",
        ),
    ] = ()
    stage: Annotated[str, Option("backbone, head or all; in two stages vision, decoder, head or all.")] = "all"
    text_lengths: Annotated[
        tuple[int, ...],
        Option(
            "Numbers of tokens to build for, 8,16,32: one static profile each in one engine; the longest text without.",
            parse=parse_text_lengths,
            text="",
        ),
    ] = ()
    floats: Annotated[
        Literal["fp16", "fp32"] | None,
        Option("Type of what is not int8; without it what the bundle was proved in, see its manifest."),
    ] = None
    overwrite: Annotated[bool, Option("Build again what is up to date.")] = False
    settings: Annotated[BuilderSettings, Uses(panel="Builder")] = field(default_factory=BuilderSettings)
