"""Interface of every backend: a graph runner with checked inputs, and the parts a policy is built from.

The public method checks and the private one works, so that each backend says only how it computes and all of them
refuse the same inputs with the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from rfedge.arrays import Array
from rfedge.config import PolicyConfig
from rfedge.contract import GraphContract, GraphName, PolicyContract
from rfedge.errors import ConfigError, ContractError, one_of
from rfedge.records.plan import Option
from rfedge.runtimes.backends.ort_providers import PROVIDERS, parse_provider
from rfedge.runtimes.policy.text import InstructionEncoder

Stage = GraphName
OPTIMIZATION_LEVELS: Final = ("disabled", "basic", "extended", "all")
SPINNING: Final = ("always", "within-call", "never")
PRECISION_HINTS: Final = ("f32", "bf16", "f16")
_MOST_THREADS: Final = 1024
TORCH_DTYPES: Final = ("float32", "bfloat16")
TORCH_WEIGHTS: Final = ("as-is", "nf4", "llm-int8")


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How a policy is loaded; a backend that cannot follow a setting says so in `GraphRunner.effective_settings`.

    Raises:
        ConfigError: a name is unknown, `threads` is negative or `providers` empty.
    """

    threads: Annotated[int, Option("Threads of the policy; 0 is all physical cores.")] = 0  # of one operator
    # of onnxruntime, in order of preference; nothing is chosen behind your back
    providers: Annotated[
        tuple[str, ...],
        Option(
            "Of onnxruntime: cpu, cuda, tensorrt or openvino.",
            flag="--provider",
            choices=tuple(PROVIDERS),
            parse=parse_provider,
            text="cpu",
        ),
    ] = ("CPUExecutionProvider",)
    optimization: str = "all"
    # `within-call` busy-waits between two operators and sleeps between two calls: it steals no cores
    spinning: Annotated[str, Option("onnxruntime workers: always, within-call or never.", choices=SPINNING)] = "within-call"
    precision_hint: str = "f32"  # what OpenVINO computes in where the graph says float
    check_inputs: bool = True
    verify: bool = True  # hash the bundle's files on load
    torch_dtype: str = "float32"  # other backends compute in what their graph says
    torch_weights: str = "as-is"  # of the backbone's MatMuls; all but `as-is` need bitsandbytes
    cuda_graph: bool = True  # let TensorRT replay captured steps
    one_stage_at_a_time: Annotated[
        bool, Option("Of a backbone in two stages, load each for its call and free it before the next: least memory, slow.")
    ] = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("optimization", self.optimization, OPTIMIZATION_LEVELS),
            ("spinning", self.spinning, SPINNING),
            ("precision_hint", self.precision_hint, PRECISION_HINTS),
            ("torch_dtype", self.torch_dtype, TORCH_DTYPES),
            ("torch_weights", self.torch_weights, TORCH_WEIGHTS),
        ):
            one_of(choices, value, name)
        if not 0 <= self.threads <= _MOST_THREADS:
            expected, remedy = f"0 (backend's choice) to {_MOST_THREADS}", "Choose --threads in that range."
            raise ConfigError("threads", got=self.threads, expected=expected, remedy=remedy)
        if not self.providers:
            raise ConfigError(
                "providers", got="none", expected="at least one", remedy="Name CPUExecutionProvider for the CPU."
            )


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One operator of a loaded graph: its name there, its kind as the backend calls it, and its milliseconds a call."""

    name: str
    kind: str
    ms: float


class GraphRunner(ABC):
    """Runs one graph of a policy; use it as a context manager or call `activate` and `deactivate`.

    A runner keeps no state between calls (recurrent state is an input and an output), but it owns buffers: one
    thread at a time. With `check_inputs` every input is compared with the contract on each call.
    """

    def __init__(self, stage: Stage, contract: GraphContract, settings: RuntimeSettings | None = None) -> None:
        self.stage: Final = stage
        self.contract: Final = contract
        self.settings: Final = settings or RuntimeSettings()
        self._is_active = False

    def activate(self) -> None:
        """Load the graph; a second call does nothing."""
        if not self._is_active:
            self._activate()
            self._is_active = True

    def deactivate(self) -> None:
        """Free the graph; a second call does nothing."""
        if self._is_active:
            self._is_active = False
            self._deactivate()

    def __enter__(self) -> GraphRunner:
        self.activate()
        return self

    def __exit__(self, *error: object) -> None:
        self.deactivate()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once on one array per input of the contract; the caller owns what it returns, one array per output.

        Raises:
            ContractError: an input does not fit the contract, or an output holds NaN or Inf; the text names the tensor.
        """
        if not self._is_active:
            raise RuntimeError(f"{type(self).__name__} of the {self.stage} is not active; call activate() first")
        if self.settings.check_inputs:
            expected = [spec.name for spec in self.contract.inputs]
            if set(inputs) != set(expected):
                subject, remedy = f"{self.stage} inputs", "Pass exactly these tensors."
                raise ContractError(subject, got=sorted(inputs), expected=sorted(expected), remedy=remedy)
            for spec in self.contract.inputs:
                spec.check(inputs[spec.name])
        outputs = self._infer(inputs)
        # Never switched off: the outputs are a few kilobytes, and a NaN would travel through the state into every
        # later action.
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                got, remedy = "NaN or Inf", "Run `rfedge verify` on the bundle and export it again at a higher precision."
                raise ContractError(f"{self.stage} output {name!r}", got=got, expected="finite values", remedy=remedy)
        return outputs

    def cancel(self) -> None:
        """End the call under way in another thread, where the backend can; it then raises PolicyUnavailableError."""
        return

    def profile(self, inputs: Mapping[str, Array], num_calls: int) -> list[NodeTime] | None:
        """Time every operator over `num_calls` further calls; None where the backend does not tell.

        Times are of one call, medians, in the order in which the operators ran; profiling itself takes time.
        """
        return None

    def effective_settings(self) -> dict[str, str]:
        """Return what the backend really uses, read back from it, as text for reports."""
        return {}

    @abstractmethod
    def _activate(self) -> None: ...

    @abstractmethod
    def _deactivate(self) -> None: ...

    @abstractmethod
    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True)
class PolicyParts:
    """Everything `rfedge.runtimes.policy.edge_policy.EdgePolicy` needs, whichever backend made it."""

    source: Path  # the bundle or checkpoint folder
    backend: str
    config: PolicyConfig
    contract: PolicyContract
    backbone: GraphRunner
    head: GraphRunner
    encoder: InstructionEncoder
    precision: str  # what the backbone really computes in, never only what was asked for
    size_bytes: int  # of the files; in memory where a checkpoint's precision is made while loading
    block_precisions: Mapping[str, str] = field(default_factory=dict)
    forced_past: tuple[str, ...] = ()  # thresholds that the bundle missed when exported with --force
    tuned: str = ""  # the choice of `rfedge tune` that was followed
