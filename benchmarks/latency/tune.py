"""Asks the machine how a bundle runs fastest: backend, precision hint, threads, spinning.

Duels: the best way so far and a challenger are loaded together and called in turn, so that two full-size forms need fit into
memory and no more, and a disturbance hits both. A challenger wins when its interval lies above 1 and its ratio beyond that
of the default against itself. Before its duel it is held to the bundle's own gates, on the proof that the bundle carries
(`rfedge.bundle.traces`); a bundle of an earlier version is compared with its default form on frames of noise.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np

from rfedge.benchmarks.latency.run import measure_latency, sample_observations
from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.gates import missed
from rfedge.bundle.traces import PROOF_STEPS, Episodes, RolloutTrace, compare_traces, load_proof, rollout
from rfedge.errors import RfedgeError
from rfedge.jobs.progress import StageProgress
from rfedge.machine.processor import probe_processor
from rfedge.policies import bundle_name, find_bundle
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import Option, check_least
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, ratio_of_medians
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND
from rfedge.runtimes.backends.tuned import TunedChoice, choice_file, tuning_key
from rfedge.runtimes.policy.edge_policy import EdgePolicy

_INSTRUCTION: Final = "pull the handle to open the drawer"
_CALLS: Final = 60
_FEWEST_CALLS: Final = 8
_SETTLE_MS: Final = 5.0
# Largest share of the budget that one duel may take.
_SHARE: Final = 0.2
# hint -> what the processor must have for it to be more than an emulation
_HINTS: Final = {"f32": (), "bf16": ("AVX512-BF16", "AMX-BF16"), "f16": ("FP16",)}


@dataclass(frozen=True)
class TunePlan:
    bundle: Annotated[Path, Option("Bundle folder or shipped policy.", argument=True, parse=find_bundle)]
    budget_s: Annotated[float, Option("No comparison begins after this many seconds.")] = 60.0
    instruction: Annotated[str, Option("Instruction of every call.")] = _INSTRUCTION
    seed: Annotated[int, Option("Seed of inputs, order and bootstrap.")] = 0

    def __post_init__(self) -> None:
        check_least(1, {"budget_s": self.budget_s})


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle."""

    backend: str = DEFAULT_BACKEND
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)

    @property
    def name(self) -> str:
        how = f"hint {self.settings.precision_hint}" if self.backend == "openvino" else f"spinning {self.settings.spinning}"
        return f"{self.backend}, {self.settings.threads or 'all'} threads, {how}"


class TuneDuel(Record):
    """One challenger."""

    name: str
    over: str  # what it was timed against
    call_ms: tuple[float, float] | None = None  # medians of the challenger and of the other
    speedup: Ratio | None = None  # over the other, in the same rounds; None where it was not timed
    metrics: dict[str, float]
    verdict: str  # "noise floor", "faster", "not faster", or why it was refused


class TuneReport(Measurement):
    """Everything that was tried."""

    format: Literal["rfedge-tune"] = "rfedge-tune"
    bundle: str
    policy: str
    checked_on: str  # what the candidates were held to
    duels: tuple[TuneDuel, ...]
    not_tried: tuple[str, ...]  # candidates for which no time was left
    choice: TunedChoice
    file: str  # name of the choice, in the folder `tuned` of the user's cache


def run_tune(plan: TunePlan, *, progress: StageProgress = lambda *_: None) -> TuneReport:
    """Find the fastest way to run the bundle here, and write it down for `rfedge.runtimes.backends.tuned.find_choice`.

    Raises ArtifactError if the bundle cannot be loaded.
    """
    bundle = load_bundle(plan.bundle)
    tuning = _Tuning(plan, bundle.manifest.parity.thresholds, time.monotonic(), progress)
    tuning.read_proof(bundle.path("proof") if bundle.has("proof") else None)
    tuning.run()
    head = provenance()
    key = tuning_key(bundle)
    choice = TunedChoice(
        measured_at=head["measured_at"],
        key=key,
        backend=tuning.best.backend,
        **{name: getattr(tuning.best.settings, name) for name in ("threads", "spinning", "precision_hint")},
        call_ms=tuning.call_ms,
        speedup=tuning.speedup,
        noise_floor=tuning.floor,
    )
    file = choice_file(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    choice.write(file)
    return TuneReport(
        schema_version=1,
        **head,
        bundle=bundle_name(plan.bundle),
        policy=bundle.policy.name,
        checked_on=tuning.checked_on,
        duels=tuple(tuning.duels),
        not_tried=tuple(tuning.not_tried),
        choice=choice,
        file=file.name,
    )


_DEFAULT: Final = Candidate(settings=RuntimeSettings(verify=False))
_NO_CHANGE: Final = Ratio(value=1.0, low=1.0, high=1.0)


@dataclass(slots=True)
class _Tuning:
    plan: TunePlan
    thresholds: Mapping[str, float]
    started_s: float
    progress: StageProgress
    best: Candidate = _DEFAULT
    duels: list[TuneDuel] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    checked_on: str = ""
    floor: Ratio = _NO_CHANGE
    speedup: Ratio = _NO_CHANGE  # of the best over the default, from duels
    call_ms: float = 0.0
    episodes: Episodes = ()
    reference: RolloutTrace | None = None

    def read_proof(self, path: Path | None) -> None:
        """Take what candidates are held to from the bundle, or from its default form."""
        if path is not None:
            self.episodes, self.reference = load_proof(path)
            self.checked_on = f"{len(self.episodes[0])} recorded steps, against PyTorch, by the gates of the export"
            return
        with self._open(self.best) as policy:
            rng = np.random.default_rng(self.plan.seed)
            inputs = [policy.parts.contract.backbone.sample_inputs(rng, dynamic_size=12) for _ in range(PROOF_STEPS)]
            self.episodes = [[{**step, "text_mask": np.ones_like(step["text_mask"])} for step in inputs]]
            self.reference = self._trace(policy)
        self.checked_on = f"{PROOF_STEPS} frames of noise, against the default form, by the gates of the export"

    def run(self) -> None:
        """Duel the default with itself, then with everything that may be faster here."""
        self._duel(self.best, is_floor=True)
        for candidates in (self._backends, self._threads, self._spinnings):
            for candidate in candidates():
                self._duel(candidate)
        self.progress("tune", 1, 1)

    def _backends(self) -> Iterator[Candidate]:
        if find_spec("openvino") is None:
            return
        features = probe_processor().features
        for hint, needed in _HINTS.items():
            if not needed or any(name in features for name in needed):
                yield Candidate("openvino", dataclasses.replace(_DEFAULT.settings, precision_hint=hint))

    def _threads(self) -> Iterator[Candidate]:
        cores = probe_processor().usable_cores
        for threads in sorted({1, cores // 2} - {0, cores}, reverse=True):
            yield dataclasses.replace(self.best, settings=dataclasses.replace(self.best.settings, threads=threads))

    def _spinnings(self) -> Iterator[Candidate]:
        if self.best.backend != DEFAULT_BACKEND:
            return
        # Not "always": what a call gains by it, cameras and simulator lose between two calls.
        yield dataclasses.replace(self.best, settings=dataclasses.replace(self.best.settings, spinning="never"))

    def _duel(self, challenger: Candidate, *, is_floor: bool = False) -> None:
        spent_s = time.monotonic() - self.started_s
        if not is_floor and spent_s > self.plan.budget_s:
            self.not_tried.append(challenger.name)
            return
        self.progress(challenger.name, int(min(spent_s, self.plan.budget_s)), int(self.plan.budget_s))
        name, over = challenger.name, self.best.name
        assert self.reference is not None, "read_proof comes first"
        try:
            with self._open(challenger) as policy:
                metrics = {} if is_floor else compare_traces(self.reference, self._trace(policy))
                wrong = missed(metrics, self.thresholds) if metrics else []
                if wrong:
                    self.duels.append(
                        TuneDuel(name=name, over=over, metrics=metrics, verdict="refused: " + "; ".join(wrong))
                    )
                    return
                with self._open(self.best) as best:
                    ratio, medians = self._time(best, policy)
        except RfedgeError as error:
            self.duels.append(TuneDuel(name=name, over=over, metrics={}, verdict=f"refused: {error}"))
            return
        if is_floor:
            self.floor, verdict = ratio, "noise floor"
            self.call_ms = medians[1]
        else:
            beyond = max(self.floor.high, 1.0 / self.floor.low)
            verdict = "faster" if ratio.low > 1.0 and ratio.value > beyond else "not faster"
        self.duels.append(TuneDuel(name=name, over=over, call_ms=medians, speedup=ratio, metrics=metrics, verdict=verdict))
        if verdict == "faster":
            factor = _NO_CHANGE if self.best == _DEFAULT else self.speedup
            self.best, self.call_ms = challenger, medians[0]
            ends = {end: getattr(ratio, end) * getattr(factor, end) for end in ("value", "low", "high")}
            self.speedup = Ratio(**ends)

    def _open(self, candidate: Candidate) -> EdgePolicy:
        return EdgePolicy.load(self.plan.bundle, backend=candidate.backend, settings=candidate.settings)

    def _trace(self, policy: EdgePolicy) -> RolloutTrace:
        return rollout(policy.config, policy.parts.backbone.infer, policy.parts.head.infer, self.episodes)

    def _time(self, best: EdgePolicy, challenger: EdgePolicy) -> tuple[Ratio, tuple[float, float]]:
        """Return the speed-up of the challenger, and the medians of both, the challenger's first."""
        observations = sample_observations(best.parts.contract, 4, seed=self.plan.seed)
        started_s = time.monotonic()
        measure = functools.partial(
            measure_latency,
            {"best": best, "challenger": challenger},
            observations,
            self.plan.instruction,
            seed=self.plan.seed,
            settle_ms=_SETTLE_MS,
        )
        measure(warmup=1, iterations=1)
        round_s = (time.monotonic() - started_s) / 2
        calls = max(_FEWEST_CALLS, min(_CALLS, int(_SHARE * self.plan.budget_s / round_s)))
        samples = measure(warmup=2, iterations=calls)
        before, after = samples["best"]["total"], samples["challenger"]["total"]
        ratio = ratio_of_medians(before, after, seed=self.plan.seed)
        return ratio, (float(np.median(after)), float(np.median(before)))
