"""Bundles on onnxruntime: the backend that runs everywhere.

Inputs are bound where they lie and outputs land in buffers made once, so that a step allocates nothing of the size
of an image. Session options are chosen here and read back into reports; onnxruntime's own fallback is off, because a
policy that silently runs on another device is slower than its report says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from rfedge.bundle import PrecisionRecord, load_bundle
from rfedge.contract import GraphContract
from rfedge.errors import ArtifactError, BackendUnavailableError, explain
from rfedge.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.runtimes.base import GraphRunner, PolicyParts, RuntimeSettings, Stage
from rfedge.runtimes.text import EmbeddingTable, InstructionEncoder
from rfedge.tokenizer import InstructionTokenizer

__all__ = ["OrtRunner", "effective_precision", "open_bundle"]

Array = npt.NDArray[Any]

_LEVELS: Final = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS_ONLY: Final = 3  # onnxruntime's log level; its warnings on graph rewrites are no news to a user


class OrtRunner(GraphRunner):
    """One ONNX file in one onnxruntime session.

    Args:
        stage: which graph of the policy this is.
        model_path: the ONNX file; external weights lie beside it.
        contract: its inputs and outputs.
        settings: session options.
        disabled_optimizers: onnxruntime graph optimizers to leave out.

    Raises:
        BackendUnavailableError: on activation, a provider is not in this build of onnxruntime or fell back.
        ArtifactError: on activation, the file cannot be loaded or its tensors are not those of the contract.
    """

    def __init__(
        self,
        stage: Stage,
        model_path: Path,
        contract: GraphContract,
        settings: RuntimeSettings | None = None,
        *,
        disabled_optimizers: Sequence[str] = (),
    ) -> None:
        self._settings = settings or RuntimeSettings()
        super().__init__(stage, contract, check_inputs=self._settings.check_inputs)
        self._model_path = model_path
        self._disabled_optimizers = tuple(disabled_optimizers)
        self._session: ort.InferenceSession | None = None
        self._binding: Any = None
        self._buffers: dict[str, Array] = {}

    def effective_settings(self) -> dict[str, str]:
        """Providers and threads as the session reports them; empty while inactive."""
        if self._session is None:
            return {}
        options = self._session.get_session_options()
        return {
            "providers": ",".join(self._session.get_providers()),
            "threads": str(options.intra_op_num_threads or "all physical cores"),
            "optimization": self._settings.optimization,
            "disabled_optimizers": ",".join(self._disabled_optimizers),
            "spinning": self._settings.spinning,
        }

    def _activate(self) -> None:
        missing = [name for name in self._settings.providers if name not in ort.get_available_providers()]
        if missing:
            raise BackendUnavailableError(
                explain(
                    "execution provider",
                    got=missing[0],
                    expected=f"one of {', '.join(ort.get_available_providers())}",
                    remedy="Install the onnxruntime build that has it.",
                )
            )
        try:
            session = ort.InferenceSession(
                self._model_path,
                self._session_options(),
                providers=list(self._settings.providers),
                disabled_optimizers=list(self._disabled_optimizers) or None,
                enable_fallback=0,
            )
        except Exception as error:  # onnxruntime's error classes share no base of their own
            raise ArtifactError(
                explain(
                    f"graph {self._model_path.name}",
                    got=f"onnxruntime error {_first_line(error)!r}",
                    expected="a graph this onnxruntime can run",
                    remedy="Update onnxruntime or export the bundle again.",
                )
            ) from error
        if session.get_providers()[0] != self._settings.providers[0]:
            raise BackendUnavailableError(
                explain(
                    "execution provider",
                    got=session.get_providers()[0],
                    expected=self._settings.providers[0],
                    remedy="Its libraries did not load; see onnxruntime's requirements for that provider.",
                )
            )
        self._check_names(session)
        self._bind(session)

    def _session_options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self._settings.threads
        options.inter_op_num_threads = 1  # one operator at a time: batch 1 has no branches worth a second pool
        options.graph_optimization_level = _LEVELS[self._settings.optimization]
        spins = self._settings.spinning
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if spins == "never" else "1")
        options.add_session_config_entry("session.force_spinning_stop", "1" if spins == "within-call" else "0")
        return options

    def _check_names(self, session: ort.InferenceSession) -> None:
        for kind, nodes, specs in (
            ("inputs", session.get_inputs(), self.contract.inputs),
            ("outputs", session.get_outputs(), self.contract.outputs),
        ):
            names, wanted = sorted(node.name for node in nodes), sorted(spec.name for spec in specs)
            if names != wanted:
                raise ArtifactError(
                    explain(f"graph {self._model_path.name} {kind}", got=names, expected=wanted, remedy="Export it again.")
                )

    def _bind(self, session: ort.InferenceSession) -> None:
        binding = session.io_binding()
        self._buffers = {spec.name: np.empty(spec.shape, dtype=spec.dtype) for spec in self.contract.outputs}
        for name, buffer in self._buffers.items():
            # On CPU the OrtValue is the numpy memory itself; on another device onnxruntime copies back into it.
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(buffer))
        self._session, self._binding = session, binding

    def _deactivate(self) -> None:
        self._session, self._binding, self._buffers = None, None, {}

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding)
        # Outputs are a few kilobytes (feature, actions, state); a copy keeps a caller's state safe from the next call.
        return {name: buffer.copy() for name, buffer in self._buffers.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def effective_precision(record: PrecisionRecord) -> str:
    """Return the precision a bundle may be called by: the requested one if some block has it, else the commonest.

    A mixed plan that left every block in float is fp32.
    """
    blocks = [_block_kind(text) for text in record.blocks.values()]
    if record.requested == "mixed" and "int8" in blocks:
        return record.requested
    if not blocks or record.requested in blocks:
        return record.requested
    return Counter(blocks).most_common(1)[0][0]


def _block_kind(text: str) -> str:
    """Return "int8" for "int8 (3 of 4 products)", as the exporter's audit writes a block that is quantized in part."""
    return text.partition(" ")[0]


def open_bundle(path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open a bundle for onnxruntime; nothing is loaded until the runners are activated.

    Raises:
        ArtifactError: the bundle is missing, incomplete or altered.
    """
    bundle = load_bundle(path, verify=settings.verify)
    config, contract, blocks = bundle.policy, bundle.contract, bundle.manifest.precision.blocks
    backbone_is_int8 = any(_block_kind(text) == "int8" for block, text in blocks.items() if block != "head")
    on_cpu = settings.providers[0] == "CPUExecutionProvider"
    backbone = bundle.cpu_backbone if on_cpu else bundle.path("backbone")
    head_is_int8 = _block_kind(blocks.get("head", "")) == "int8"
    tokenizer = InstructionTokenizer.load(bundle.path("tokenizer"), config.decoder.text_length)
    return PolicyParts(
        source=path,
        backend="onnxruntime",
        config=config,
        contract=contract,
        backbone=OrtRunner(
            "backbone",
            backbone,
            contract.backbone,
            settings,
            disabled_optimizers=DISABLED_OPTIMIZERS if backbone_is_int8 and backbone == bundle.path("backbone") else (),
        ),
        head=OrtRunner(
            "head",
            bundle.path("head"),
            contract.head,
            settings,
            disabled_optimizers=DISABLED_OPTIMIZERS if head_is_int8 else (),
        ),
        encoder=InstructionEncoder(
            tokenizer,
            EmbeddingTable(bundle.path("embedding"), config.decoder.width),
            padded=contract.backbone.input("text_mask").shape[1] != -1,
        ),
        precision=effective_precision(bundle.manifest.precision),
        size_bytes=bundle.size_bytes,
        block_precisions=dict(blocks),
    )
