"""Where a run's policy comes from, a bundle here or a server elsewhere, its loop, and what a report says of it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from rfedge.errors import ConfigError
from rfedge.policies import find_bundle
from rfedge.records.plan import Option
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND
from rfedge.runtimes.control.controllers import SYNCHRONOUS_MODES, make_controller
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.policy.step import Policy
from rfedge.runtimes.rollout.plan import RolloutPlan, ServerAddress

if TYPE_CHECKING:
    from rfedge.runtimes.rollout.rollout_session import Agent

logger = logging.getLogger(__name__)
TORCH: Final = "torch"


@dataclass(frozen=True, slots=True)
class TorchPolicy:
    """A checkpoint in PyTorch, in a precision that no bundle has here."""

    checkpoint: Path
    # dtype, weights: `torch_dtype` and `torch_weights` of `RuntimeSettings`
    dtype: str = "float32"
    weights: str = "as-is"

    @property
    def precision(self) -> str:
        return self.weights if self.weights != "as-is" else {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]

    def settings(self, common: RuntimeSettings) -> RuntimeSettings:
        """Return what it is loaded with, where all policies have `common`."""
        return replace(common, torch_dtype=self.dtype, torch_weights=self.weights)

    def open(self, common: RuntimeSettings) -> EdgePolicy:
        """Load it; errors as those of `EdgePolicy.load`."""
        return EdgePolicy.load(self.checkpoint, backend=TORCH, settings=self.settings(common))


@dataclass(frozen=True, slots=True, eq=False)
class OpenedPolicy:
    """A policy and its labels in a report."""

    policy: Policy
    source: str  # folder or address
    name: str
    precision: str
    settings: dict[str, str]  # what its backend said of itself
    forced_past: tuple[str, ...]  # thresholds of the export that its bundle missed and was written in spite of
    # ends a call that hangs, from another thread; None for a server, whose calls have a deadline
    cancel: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class PolicyLoop:
    """A bundle in a loop that does not depend on time; what measures or records demonstrations opens it in each worker."""

    # with backend torch a checkpoint
    bundle: Annotated[
        Path,
        Option(
            "Bundle that drives while the experts label what they would have done, or until they take over.",
            flag="--policy",
            parse=find_bundle,
            optional=True,
        ),
    ]
    mode: Annotated[
        str | None,
        Option(
            "Loop of the policy: closed-loop, open-loop or jump-step; default: as it was trained.", choices=SYNCHRONOUS_MODES
        ),
    ] = None
    execute_steps: Annotated[int | None, Option("Actions the policy plays per inference; default: as it was trained.")] = (
        None
    )
    ensemble: float | None = None  # decay of a temporal ensemble, or None
    backend: str = DEFAULT_BACKEND
    # one thread, so that workers do not fight for the cores, and so that the order of sums is the same on every machine
    settings: RuntimeSettings = field(default_factory=lambda: RuntimeSettings(threads=1))

    def load(self) -> EdgePolicy:
        """Load the bundle; errors as those of `EdgePolicy.load`."""
        return EdgePolicy.load(self.bundle, backend=self.backend, settings=self.settings)

    def open(self) -> tuple[EdgePolicy, Controller]:
        """Load the bundle and put it into its loop; closing the policy frees both.

        Raises ConfigError if mode, steps or ensemble do not fit the policy, else what `load` raises.
        """
        policy = self.load()
        try:
            return policy, make_controller(
                policy, self.mode, self.execute_steps, ensemble=self.ensemble, modes=SYNCHRONOUS_MODES
            )
        except BaseException:
            policy.close()
            raise

    def __call__(self) -> Agent:
        """Open it as what acts in tasks; it sees frames and the instruction, and neither states nor the task's name."""
        source = logging.getLogger("rfedge.runtimes.control.modes")
        source.disabled = True  # warnings of the time base: `run_success` gives one for all workers
        try:
            _, controller = self.open()
        finally:
            source.disabled = False
        return lambda subtask, environment: controller


def open_policy(stack: ExitStack, plan: RolloutPlan, on_load: Callable[[EdgePolicy], None]) -> OpenedPolicy:
    """Load the plan's bundle or connect to its server; `stack` closes it at the end of the run."""
    if plan.server is not None:
        return _connect(stack, plan.server)
    assert plan.bundle is not None
    policy = stack.enter_context(EdgePolicy.load(plan.bundle, backend=plan.backend, settings=plan.settings))
    on_load(policy)
    return OpenedPolicy(
        policy=policy,
        source=str(plan.bundle),
        name=policy.config.name,
        precision=policy.parts.precision,
        settings=policy.parts.backbone.effective_settings() | ({"tuned": policy.parts.tuned} if policy.parts.tuned else {}),
        forced_past=policy.parts.forced_past,
        cancel=policy.cancel,
    )


def _connect(stack: ExitStack, server: ServerAddress) -> OpenedPolicy:
    from rfedge.runtimes.server.client import RemotePolicy

    policy = stack.enter_context(
        RemotePolicy(server.url, deadline_ms=server.deadline_ms, token=server.token, tls=_client_tls(server))
    )
    said = policy.metadata
    forced_past = tuple(str(text) for text in said.get("forced_past") or ())
    if forced_past:
        logger.warning("%s serves a bundle exported with --force; its proof missed %s", server.url, "; ".join(forced_past))
    return OpenedPolicy(
        policy=policy,
        source=server.url,
        name=str(said.get("policy")),
        precision=str(said.get("precision")),
        settings={str(key): str(value) for key, value in dict(said.get("backend_settings") or {}).items()},
        forced_past=forced_past,
    )


def _client_tls(server: ServerAddress) -> ssl.SSLContext | None:
    if server.certificate is None:
        return None
    try:
        return ssl.create_default_context(cafile=server.certificate)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"certificate {server.certificate}",
            got=error.strerror or str(error),
            expected="a PEM file",
            remedy="Check --server-certificate.",
        ) from None
