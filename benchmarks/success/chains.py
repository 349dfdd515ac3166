"""CALVIN's long-horizon protocol: chains of five tasks without a reset between them, 360 control steps for each.

The task oracle checks after every step, and the first task that is not done in time ends the chain. Source: CALVIN, Mees et
al., RA-L 2022, and its evaluation script. Seeds follow from the run's seed, the chain's index and the subtask's position, so
in an environment whose restored state forgets the past, as PlayTable's does, neither the number of processes nor a restart
shows.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from rfedge.envs.chains import CHAIN_LENGTH, Chain, chains_sha256, initial_state
from rfedge.envs.interface import EnvironmentIdentity
from rfedge.envs.language import LANGUAGES, choose_instruction
from rfedge.envs.looks import redress
from rfedge.envs.tasks import TASKS
from rfedge.errors import ConfigError, did_you_mean, one_of
from rfedge.io.atomic import atomic_file
from rfedge.io.journal import Journal, open_journal, read_journal
from rfedge.jobs.processes import JobRunner, run_jobs
from rfedge.jobs.progress import Count
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import check_least
from rfedge.records.record import Record, parse_lines
from rfedge.records.statistics import Mean, Proportion, mean_with_interval, proportion
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.safety import SafetyLimits
from rfedge.runtimes.rollout import RolloutRecord
from rfedge.runtimes.rollout.rollout_session import (
    Agent,
    RolloutSetup,
    Simulator,
    Subtask,
    close_session,
    open_session,
)


class ChainRecord(Record):
    """One chain; one line of `chains.jsonl`."""

    index: int  # place in the set of chains
    state: dict[str, int | str]
    tasks: tuple[str, ...]
    num_solved: int  # 0 to 5, in a row from the first
    subtasks: tuple[RolloutRecord, ...]  # those that were begun: the solved ones and the one that ended the chain
    environment: EnvironmentIdentity  # what it was run in; renderer "none" when the agent did not look
    duration_s: float  # wall-clock time

    @property
    def key(self) -> int:
        return self.index


class TaskScore(Record):
    """One task over all chains; tasks that no chain reached have none."""

    success: Proportion
    mean_steps: float | None  # control steps of the successes; None without one


class ChainConditions(Record):
    environment: str
    scene: str
    agent: dict[str, str]  # name and facts of what acted, for instance a bundle's hash
    language: str
    max_steps: int
    seed: int
    num_chains: int
    chains_sha256: str  # see `rfedge.envs.chains.chains_sha256`


class ChainReport(Measurement):
    """The whole document; `renderer` drew the images."""

    format: Literal["rfedge-chains"] = "rfedge-chains"
    schema_version: int = 1
    conditions: ChainConditions
    renderer: str
    average_length: Mean  # mean number of subtasks solved in a row
    success_rates: dict[str, Proportion]  # "1" to "5" -> share of the chains with at least that many solved in a row
    tasks: dict[str, TaskScore]
    mean_solved_steps: float | None  # control steps of a solved subtask; None when none was
    chain_seconds: float  # time of all chains added up
    wall_seconds: float  # of the call that finished the run; it did not run the `num_resumed` chains it found done
    num_workers: int
    num_resumed: int
    looks: str | None = None  # what they showed; None in records that are older than the field


def average_length(records: Sequence[ChainRecord], *, seed: int) -> Mean:
    """Return the mean number of subtasks solved in a row, over at least one chain."""
    lengths = np.array([record.num_solved for record in records], dtype=np.float64)
    return mean_with_interval(lengths, seed=seed, between=(0.0, CHAIN_LENGTH))


def success_rates(records: Sequence[ChainRecord]) -> dict[str, Proportion]:
    """Return "1" to "5" -> share of the chains, at least one, with that many solved in a row or more."""
    return {
        str(length): proportion(sum(record.num_solved >= length for record in records), len(records))
        for length in range(1, CHAIN_LENGTH + 1)
    }


def attempted_subtasks(records: Iterable[ChainRecord]) -> list[RolloutRecord]:
    """Return every subtask that was begun, chain by chain."""
    return [subtask for record in records for subtask in record.subtasks]


def task_scores(subtasks: Iterable[RolloutRecord]) -> dict[str, TaskScore]:
    """Return the score of every task that was begun, in the order of the task ids."""
    total: Counter[str] = Counter()
    solved_steps: dict[str, list[int]] = {}
    for subtask in subtasks:
        task = subtask.task or ""  # every rollout of a measurement has one
        total[task] += 1
        if subtask.success:
            solved_steps.setdefault(task, []).append(subtask.num_steps)
    return {
        task: TaskScore(
            success=proportion(len(solved_steps.get(task, ())), total[task]),
            mean_steps=float(np.mean(solved_steps[task])) if task in solved_steps else None,
        )
        for task in TASKS
        if task in total
    }


def mean_solved_steps(subtasks: Iterable[RolloutRecord]) -> float | None:
    """Return the mean control steps of the solved subtasks; None when there is none."""
    steps = [subtask.num_steps for subtask in subtasks if subtask.success]
    return float(np.mean(steps)) if steps else None


def calvin_results(records: Sequence[ChainRecord], name: str) -> dict[str, Any]:
    """Return the document that CALVIN's evaluation writes as `results.json`, with `name` in the place of its epoch."""
    scores = {task: score.success for task, score in task_scores(attempted_subtasks(records)).items()}
    return {
        name: {
            "avg_seq_len": float(np.mean([record.num_solved for record in records])),
            "chain_sr": {length: rate.value for length, rate in success_rates(records).items()},
            "task_info": {task: {"success": score.successes, "total": score.n} for task, score in scores.items()},
        }
    }


CHAINS_FILE: Final = "chains.jsonl"
RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "report.json"
_JOURNAL_VERSION: Final = 2
_INSTRUCTION_STREAM: Final = 1  # beside the agent's own seed


@dataclass(frozen=True)
class ChainPlan:
    # called once in every process that runs chains. Hashable; for more than one worker also picklable, so a class, a
    # top-level function or a frozen dataclass with `__call__`.
    make_agent: Callable[[], Agent]
    agent_name: str  # what reports call the agent
    # what else decides how it acts, for instance a bundle's hash; a run is only gone on with by the same
    agent_facts: Mapping[str, str] = field(default_factory=dict)
    world: Simulator = field(default_factory=Simulator)
    # "evaluation", CALVIN's one instruction a task, or "enriched", one of our held-out ones sampled for every subtask; what
    # an own table is called in reports when `instructions` is given
    language: str = "evaluation"
    instructions: Mapping[str, str] | None = None  # task -> instruction, instead of a known language
    left_out: frozenset[str] = frozenset()  # sentences of the language that are never sampled
    max_steps: int = MAX_STEPS  # control steps for each subtask
    seed: int = 0  # see `Subtask.seed`
    limits: SafetyLimits = field(default_factory=SafetyLimits)  # what the actions are held to
    # what the run is compared with was made in; this one must be too. None for none.
    environment: EnvironmentIdentity | None = None

    def __post_init__(self) -> None:
        if self.instructions is None:
            one_of(LANGUAGES, self.language, "language")
        check_least(1, {"max_steps": self.max_steps}, remedy="Give a larger number.")
        check_least(0, {"seed": self.seed}, remedy="Give a larger number.")

    def setup(self, environment: EnvironmentIdentity | None) -> RolloutSetup:
        """Return what a process needs, whose rollouts join those made in `environment`."""
        return RolloutSetup(self.make_agent, self.world, self.max_steps, self.limits, environment)

    def arguments(self) -> dict[str, Any]:
        """Return what decides a run: a journal goes on with no other."""
        return {
            "environment": self.world.name,
            "scene": self.world.scene,
            "agent": {"name": self.agent_name, **self.agent_facts},
            "language": self.language,
            "instructions": self.instructions and dict(self.instructions),
            **({"left_out_instructions": sorted(self.left_out)} if self.left_out else {}),
            "max_steps": self.max_steps,
            "seed": self.seed,
        }

    def subtasks(self, index: int, chain: Chain) -> tuple[Subtask, ...]:
        """Return the agent's subtasks in the chain at `index`."""
        return tuple(self.subtask(task, [self.seed, index, position]) for position, task in enumerate(chain.tasks))

    def subtask(self, task: str, entropy: Sequence[int]) -> Subtask:
        """Return the subtask `task`; its instruction and seed follow from `entropy`."""
        instruction = self.instruction(task, np.random.default_rng([*entropy, _INSTRUCTION_STREAM]))
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return Subtask(instruction=instruction, task=task, seed=seed)

    def instruction(self, task: str, rng: np.random.Generator) -> str:
        """Return the instruction for `task`, sampled from `rng` where the language has several."""
        if self.instructions is None:
            return choose_instruction(task, self.language, rng, self.left_out)
        if task in self.instructions:
            return self.instructions[task]
        expected = did_you_mean(task, self.instructions)
        raise ConfigError("instruction", got=f"none for {task!r}", expected=expected, remedy="Add the task.")


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    chain: Chain
    subtasks: tuple[Subtask, ...]


def run_chains(
    plan: ChainPlan,
    chains: Sequence[Chain],
    output: Path | None = None,
    *,
    workers: int = 1,
    runner: JobRunner = run_jobs,
    on_chain: Count = lambda *_: None,
) -> ChainReport:
    """Run every chain, or those that an earlier call did not finish, and report.

    `output` gets `chains.jsonl`, one line a chain in the order in which they end, `results.json` in CALVIN's form and
    `report.json`; a run of the first chains of the set goes on there. None keeps nothing. The result does not depend on the
    number of workers.

    Raises:
        ConfigError: there is nothing to run, an environment, task or agent is not possible, `output` holds another run, one
            begun in another environment or something else, or another process runs there.
        BackendUnavailableError: the simulator or its renderer is not on this machine.
        ArtifactError: `chains.jsonl` is damaged.
    """
    check_least(1, {"number of chains": len(chains), "workers": workers}, remedy="Give a positive whole number.")
    jobs = [_Job(index, chain, plan.subtasks(index, chain)) for index, chain in enumerate(chains)]
    arguments = {"schema_version": _JOURNAL_VERSION, **plan.arguments()}  # a run may go on with more chains
    facts = {name: arguments[name] for name in ("environment", "scene", "agent", "language", "max_steps", "seed")}
    conditions = ChainConditions(**facts, num_chains=len(chains), chains_sha256=chains_sha256(chains))
    begun_s = time.perf_counter()
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        journal = stack.enter_context(open_journal(folder / CHAINS_FILE, arguments))
        done = _parse(journal.records, folder / CHAINS_FILE)
        _check_same_chains(done, chains, folder)
        num_resumed = len(done)
        run_missing(plan, journal, done, dict(enumerate(jobs)), _run_chain, workers, runner, on_chain)
        if num_resumed == len(jobs) and (folder / REPORT_FILE).is_file():
            before = ChainReport.model_validate_json((folder / REPORT_FILE).read_bytes())
            if before.conditions.num_chains == len(jobs):
                # It says when and on what the chains were run; a new one would claim that it was here and now.
                return before
        records = [done[index] for index in range(len(jobs))]
        report = ChainReport(
            **provenance(),
            conditions=conditions,
            renderer=records[0].environment.renderer,
            looks=records[0].environment.looks,
            average_length=average_length(records, seed=plan.seed),
            success_rates=success_rates(records),
            tasks=task_scores(attempted_subtasks(records)),
            mean_solved_steps=mean_solved_steps(attempted_subtasks(records)),
            chain_seconds=sum(record.duration_s for record in records),
            wall_seconds=time.perf_counter() - begun_s,
            num_workers=workers,
            num_resumed=num_resumed,
        )
        with atomic_file(folder / RESULTS_FILE) as temporary:
            temporary.write_text(json.dumps(calvin_results(records, plan.agent_name), indent=2) + "\n")
        report.write(folder / REPORT_FILE)
        return report


def run_missing(
    plan: ChainPlan,
    journal: Journal,
    done: dict[Any, Any],
    jobs: Mapping[Any, Any],
    call: Callable[[RolloutSetup, Any], Any],
    workers: int,
    runner: JobRunner,
    on_job: Count,
) -> None:
    """Run those of `jobs` (key -> job) whose records are not in `done`, and add them there and to the journal."""
    environment = plan.environment
    for record in done.values():
        environment = record.environment.check_same(environment)
    on_job(len(done), len(jobs))
    missing = [job for key, job in jobs.items() if key not in done]
    try:
        for _, record in runner(functools.partial(call, plan.setup(environment)), missing, workers):
            environment = record.environment.check_same(environment)  # workers may run on several machines
            journal.append(record.model_dump(mode="json"))
            done[record.key] = record
            on_job(len(done), len(jobs))
    finally:
        close_session()  # of a run in this process


def read_chains(folder: Path) -> tuple[ChainRecord, ...]:
    """Return the chains of a run in the order of their set."""
    done = _parse(read_journal(folder / CHAINS_FILE), folder / CHAINS_FILE)
    return tuple(done[index] for index in sorted(done))


def _check_same_chains(done: Mapping[int, ChainRecord], chains: Sequence[Chain], folder: Path) -> None:
    """Refuse a folder that holds more chains than asked for, or other ones."""
    if done and max(done) >= len(chains):
        raise ConfigError(
            f"number of chains of the run in {folder}",
            got=len(chains),
            expected=f"at least {max(done) + 1}, which are there",
            remedy="Ask for as many or more to go on, or choose another --output.",
        )
    for index, record in done.items():
        if (record.state, record.tasks) != (asdict(chains[index].state), tuple(chains[index].tasks)):
            raise ConfigError(
                f"chain {index} of the run in {folder}",
                got=", ".join(chains[index].tasks),
                expected=f"{', '.join(record.tasks)} from the same state, with which it was run",
                remedy="Repeat the arguments to go on, or choose another --output.",
            )


def _parse(lines: Iterable[Mapping[str, Any]], path: Path) -> dict[int, ChainRecord]:
    return {record.key: record for record in parse_lines(ChainRecord, lines, path, what="chain")}


def _run_chain(setup: RolloutSetup, job: _Job) -> ChainRecord:
    session = open_session(setup)
    environment = session.environment
    begun_s = time.perf_counter()
    redress(environment, (job.index,))
    environment.restore(*initial_state(job.chain.state, environment.scene))
    subtasks: list[RolloutRecord] = []
    for subtask in job.subtasks:
        subtasks.append(session.roll_out(subtask))
        if not subtasks[-1].success:
            break
    return ChainRecord(
        index=job.index,
        state=asdict(job.chain.state),
        tasks=job.chain.tasks,
        num_solved=sum(subtask.success for subtask in subtasks),
        subtasks=tuple(subtasks),
        environment=session.identity,
        duration_s=time.perf_counter() - begun_s,
    )
