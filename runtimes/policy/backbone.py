"""The backbone of a bundle as one runner, whether it is one graph or two, and whichever backend runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rfedge.arrays import Array
from rfedge.bundle.artifact import Bundle
from rfedge.bundle.stages import call_in_order
from rfedge.contract import GraphContract
from rfedge.errors import ConfigError
from rfedge.runtimes.backends.base import GraphRunner, NodeTime, RuntimeSettings, Stage

__all__ = ["StagedRunner", "open_backbone", "refuse_one_stage_at_a_time"]

# (stage, graph file, settings) -> a runner of that graph, not yet active
MakeRunner = Callable[[Stage, Path, RuntimeSettings], GraphRunner]


def open_backbone(bundle: Bundle, settings: RuntimeSettings, make_runner: MakeRunner, *, for_cpu: bool) -> GraphRunner:
    """Return the runner of the bundle's backbone; nothing is loaded until it is activated.

    Raises:
        ArtifactError: the bundle lacks a graph.
        ConfigError: one stage at a time, of a backbone in one graph.
    """
    graphs = bundle.backbone_graphs(for_cpu=for_cpu)
    if len(graphs) == 1:
        if settings.one_stage_at_a_time:
            raise refuse_one_stage_at_a_time(f"bundle {bundle.root}")
        return make_runner("backbone", graphs["backbone"], settings)
    # What the caller gives is checked once, against the contract of the whole.
    unchecked = dataclasses.replace(settings, check_inputs=False)
    stages = [make_runner(stage, graph, unchecked) for stage, graph in graphs.items()]
    return StagedRunner(bundle.contract.backbone, stages, settings)


def refuse_one_stage_at_a_time(subject: str) -> ConfigError:
    expected, remedy = "vision and decoder", "Export it with --stages two, or leave --one-stage-at-a-time out."
    return ConfigError(f"one stage at a time of {subject}", got="a backbone in one graph", expected=expected, remedy=remedy)


class StagedRunner(GraphRunner):
    """Runs the stages of a backbone in order, under the contract of the whole.

    With `one_stage_at_a_time` each is loaded for its call and freed before the next. Activation loads each once, so that a
    damaged graph is refused before the first call; it raises what the stages' runners raise.
    """

    def __init__(self, contract: GraphContract, stages: Sequence[GraphRunner], settings: RuntimeSettings) -> None:
        super().__init__("backbone", contract, settings)
        self._stages = tuple(stages)
        self._one_at_a_time = settings.one_stage_at_a_time
        self._settings: dict[str, str] = {}

    def effective_settings(self) -> dict[str, str]:
        """Those of the last stage, read back when it was loaded, and how the stages are kept; empty while inactive."""
        return dict(self._settings)

    def cancel(self) -> None:
        for runner in self._stages:
            runner.cancel()

    def profile(self, inputs: Mapping[str, Array], num_calls: int) -> list[NodeTime] | None:
        """Time the operators of all stages, each on what the one before it returned."""
        found: list[NodeTime] = []
        is_timed = True

        def profiled(runner: GraphRunner) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
            def call(given: Mapping[str, Array]) -> dict[str, Array]:
                nonlocal is_timed
                times = runner.profile(given, num_calls)
                is_timed = is_timed and times is not None
                found.extend(times or ())
                return self._call(runner)(given)

            return call

        call_in_order(self.contract, [(runner.contract, profiled(runner)) for runner in self._stages], inputs)
        return found if is_timed else None

    def _activate(self) -> None:
        try:
            for runner in self._stages:
                runner.activate()
                self._settings = runner.effective_settings()
                if self._one_at_a_time:
                    runner.deactivate()
        except BaseException:
            self._deactivate()
            raise
        names = " and ".join(runner.stage for runner in self._stages)
        self._settings["stages"] = f"{names}, {'one at a time' if self._one_at_a_time else 'both loaded'}"

    def _deactivate(self) -> None:
        for runner in self._stages:
            runner.deactivate()
        self._settings = {}

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return call_in_order(self.contract, [(runner.contract, self._call(runner)) for runner in self._stages], inputs)

    def _call(self, runner: GraphRunner) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        if not self._one_at_a_time:
            return runner.infer

        def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
            with runner:
                return runner.infer(inputs)

        return call
