"""A bundle in its loop, computing on this CPU what its TensorRT engines would: success of an engine without a GPU.

The graphs are those of the exporter's proof of engines, which round to fp16 where an engine does and say what is not
emulated (`rfedge.export.tensorrt.engine_proof`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.bundle.artifact import Bundle, TensorRtRecord, load_bundle
from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings, Stage
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.policy_source import PolicyLoop

# What records call it where they name a backend.
EMULATED: Final = "tensorrt, emulated"


@dataclass(frozen=True, slots=True)
class EmulatedEngineLoop(PolicyLoop):
    """A bundle as emulated engines; `backend` says so, and is not asked for."""

    def load(self) -> EdgePolicy:
        """Write the emulated graphs to a folder that is gone once they are loaded, and load them."""
        from rfedge.runtimes.backends.ort import OrtRunner, open_bundle
        from rfedge.runtimes.policy.backbone import open_backbone

        bundle = load_bundle(self.bundle)
        parts = open_bundle(self.bundle, self.settings)
        with tempfile.TemporaryDirectory() as folder:
            graphs = _write_graphs(bundle, Path(folder))

            def make_runner(stage: Stage, _graph: Path, settings: RuntimeSettings) -> GraphRunner:
                contract = bundle.contract.graphs[stage]
                return OrtRunner(stage, graphs[stage], contract, settings, disabled_optimizers=DISABLED_OPTIMIZERS)

            return EdgePolicy(
                dataclasses.replace(
                    parts,
                    backend=EMULATED,
                    backbone=open_backbone(bundle, self.settings, make_runner, for_cpu=False),
                    head=make_runner("head", graphs["head"], self.settings),
                    precision=engine_precision(bundle),
                )
            )


def engine_precision(bundle: Bundle) -> str:
    """Return what the engines of a bundle compute in, such as "int8 + fp16, 21 nodes in fp32"."""
    islands = sum(len(form.islands) for form in _record(bundle).graphs.values())
    quantized = "" if (asked := bundle.manifest.precision.requested) == "fp16" else f"{asked} + "
    return f"{quantized}fp16" + (f", {islands} nodes in fp32" if islands else "")


def _record(bundle: Bundle) -> TensorRtRecord:
    record = bundle.manifest.tensorrt
    if record is None or all(form.floats == "fp32" for form in record.graphs.values()):
        raise ConfigError(
            f"--emulate-engines of bundle {bundle.root}",
            got="engines that compute in the types of its graphs",
            expected="engines in fp16",
            remedy="Leave the option out: the bundle itself runs what its engines would.",
        )
    return record


def _write_graphs(bundle: Bundle, folder: Path) -> dict[Stage, Path]:
    """Return graph -> what to run for it; graphs whose engines keep their types are those of the bundle."""
    try:
        from rfedge.export.tensorrt.engine_proof import write_emulation
    except ModuleNotFoundError as error:
        got, remedy = f"no module {error.name!r}", "Install the extra that exports: pip install 'rfedge[export]'."
        raise BackendUnavailableError("--emulate-engines", got=got, expected="an installed library", remedy=remedy) from None
    found: dict[Stage, Path] = {}
    for name, form in _record(bundle).graphs.items():
        found[name] = bundle.graph(name, for_cpu=True)
        if form.floats == "fp16":
            found[name] = folder / f"{name}.onnx"
            write_emulation(bundle.path(name), form.islands, found[name])
    return found
