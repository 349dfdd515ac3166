"""Several processes, several passes and fewer bits give the run of one process, and a lost process costs a restart alone."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rfedge.config import PolicyConfig, preset
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import build_policy, save_checkpoint
from rfedge.train import TrainConfig, train_config, train_policy
from rfedge.train.compute_context import reach_all
from rfedge.train.distributed import Processes, join
from tests.errors import raises
from tests.synthetic_demonstrations import TASKS
from tests.synthetic_image_text import QUESTIONS, WORDS, write_image_text
from tests.train.distributed_worker import write_jobs
from tests.train.test_loop import assert_same_weights, rows

ROOT = Path(__file__).parents[2]
# Sums of float32 in another order: measured 2e-5 over 14 steps, 2e-4 in a norm over 24. Anything forgotten (a mean over a
# part, a shift drawn twice, a gradient not shared) is off by percents.
TOLERANCE = 1e-3
# A machine may be so busy that an import takes a minute.
TIMEOUT_S = 280

Configure = Callable[..., TrainConfig]


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **{name: str(value) for name, value in names.items()}, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_processes(command: list[str], world_size: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Start `python command` `world_size` times, as torchrun would, and wait for all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, out, err)
        for process, (out, err) in zip(started, outputs, strict=True)
    ]


def run_jobs(path: Path, configs: list[TrainConfig], world_size: int = 2) -> None:
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    for process in run_processes([worker, str(write_jobs(path, configs))], world_size):
        assert process.returncode == 0, process.stderr


def assert_same_curve(expected: Path, got: Path, tolerance: float = TOLERANCE) -> None:
    left, right = rows(expected), rows(got)
    assert [row.keys() for row in left] == [row.keys() for row in right]
    assert len(left) > 3
    for one, other in zip(left, right, strict=True):
        assert other == pytest.approx(one, rel=tolerance, abs=1e-7)


def without_dropout(**changes: Any) -> PolicyConfig:
    policy = preset("tiny")
    head = policy.head.model_copy(update={"dropout": 0.0})
    return PolicyConfig.model_validate({**policy.model_dump(), "head": head.model_dump(), **changes})


@pytest.fixture
def plain(configure: Configure) -> Configure:
    """Return a function (output, **options) -> a run from nothing: the head first, then all, with shifted images."""

    def build(output: Path, **options: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "steps": 5,
            "batch_size": 5,  # no multiple of the processes
            "head_first_steps": 2,
            "head_first_batch_size": 5,
            "validate_every": 3,
            "validation_windows": 6,  # the last part of a measurement has one window, for two processes
            "augmentation": "frame",
            "learning_rate": 1e-4,
            "save_every": 1,
        }
        head = without_dropout().head
        return configure(output, {"head": head}, **{**defaults, **options})

    return build


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose last block is of use to image-text pairs alone."""
    decoder = {**preset("tiny").decoder.model_dump(), "text_length": 24, "feature": "last_block_input"}
    corpus = (*TASKS.values(), *WORDS * 3, *QUESTIONS * 3)
    tokenizer = InstructionTokenizer.from_corpus(corpus, vocab_size=1024, text_length=24)
    path = tmp_path_factory.mktemp("initial") / "checkpoint"
    save_checkpoint(path, build_policy(without_dropout(decoder=decoder), seed=3), tokenizer, {})
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_text(tmp_path_factory.mktemp("pairs"), num_images=24)


@pytest.fixture
def co_training(demonstrations: Path, checkpoint: Path, pairs: Path) -> Configure:
    """Return a function (output, **options) -> a run that goes on from a checkpoint and also learns pairs."""

    def build(output: Path, **options: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "steps": 3,
            "batch_size": 5,
            "validate_every": 2,
            "validation_windows": 5,
            "image_text": (pairs,),
            "image_text_batch_size": 5,
            "caption_weight": 0.1,
            "trainable": "full",
            "learning_rate": 1e-4,
        }
        changed = {**defaults, **options}
        return train_config(str(checkpoint), data=demonstrations, output=output, policy_changes={"window": 3}, **changed)

    return build


def test_two_processes_give_the_curve_of_one(plain: Configure, co_training: Configure, tmp_path: Path) -> None:
    """DDP and FSDP2, with all that a batch can hold, and two passes a process for good measure."""
    train_policy(plain(tmp_path / "plain"))
    train_policy(co_training(tmp_path / "pairs"))
    jobs = [
        build(tmp_path / f"{name}-{parallel}", parallel=parallel, **options)
        for parallel in ("ddp", "fsdp")
        for name, build, options in (("plain", plain, {}), ("pairs", co_training, {"accumulate": 2}))
    ]
    run_jobs(tmp_path / "jobs.json", jobs)
    for name in ("plain", "pairs"):
        for parallel in ("ddp", "fsdp"):
            got = tmp_path / f"{name}-{parallel}"
            assert_same_curve(tmp_path / name, got)
            document = json.loads((got / "checkpoint" / "config.json").read_text())
            assert document["metadata"]["num_processes"] == 2
            assert not list((got / "state").glob("*.partial"))


def lose_a_process(build: Configure, tmp_path: Path, parallel: str, victim: int) -> TrainConfig:
    """Start two processes of which one is killed in the fourth step; the other tells it in one sentence."""
    run = build(tmp_path / f"{parallel}-{victim}", parallel=parallel)
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    processes = run_processes([worker, str(write_jobs(tmp_path / "jobs.json", [run], kill=(victim, 4)))])
    assert processes[victim].returncode == -9
    told = processes[1 - victim].stderr
    assert "BackendUnavailableError: another process of this run: got no connection to it any more" in told
    assert "the run goes on from its newest state" in told
    assert not (run.output / "checkpoint").exists()
    return run


@pytest.mark.slow
def test_a_lost_process_and_one_goes_on(plain: Configure, tmp_path: Path) -> None:
    train_policy(plain(tmp_path / "whole"))
    run = lose_a_process(plain, tmp_path, "fsdp", victim=1)
    train_policy(run)
    assert_same_curve(tmp_path / "whole", run.output)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "victim"), [("ddp", 0), ("ddp", 1), ("fsdp", 0)])
def test_a_lost_process_and_two_go_on(plain: Configure, tmp_path: Path, parallel: str, victim: int) -> None:
    train_policy(plain(tmp_path / "whole"))
    run = lose_a_process(plain, tmp_path, parallel, victim)
    run_jobs(tmp_path / "again.json", [run])
    assert_same_curve(tmp_path / "whole", run.output)


@pytest.mark.slow
def test_torchrun_starts_a_lost_process_again(plain: Configure, tmp_path: Path) -> None:
    """And the run goes on, although it was asked to start over: that was meant for the first start."""
    train_policy(plain(tmp_path / "whole"))
    run = plain(tmp_path / "run", resume=False, parallel="fsdp")
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    jobs = str(write_jobs(tmp_path / "jobs.json", [run], kill=(1, 4)))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    every = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, worker, jobs], env=every, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "failed (exitcode: " in done.stderr  # of the killed one or of the one that lost it, whichever torchrun saw
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2  # a part of the run each
    assert_same_curve(tmp_path / "whole", run.output)


@pytest.mark.slow
def test_dropout_differs_between_processes_and_resumes(configure: Configure, tmp_path: Path) -> None:
    """With dropout two processes draw other masks than one, and the same ones again after a stop."""
    options = {"batch_size": 4, "head_first_steps": 2, "head_first_batch_size": 4, "validate_every": 0}
    run_jobs(tmp_path / "whole.json", [configure(tmp_path / "whole", steps=5, **options)])
    # A constant rate, or a shorter run would also be a faster decay.
    run_jobs(tmp_path / "again.json", [configure(tmp_path / "again", steps=5, **options)])
    assert_same_weights(tmp_path / "whole", tmp_path / "again")
    stopped = configure(tmp_path / "parts", steps=5, save_every=1, **options)
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    run_processes([worker, str(write_jobs(tmp_path / "parts.json", [stopped], kill=(1, 3)))])
    run_jobs(tmp_path / "parts.json", [stopped])
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    train_policy(configure(tmp_path / "one", steps=5, **options))
    with pytest.raises(AssertionError):
        assert_same_curve(tmp_path / "one", tmp_path / "whole")


def cli(*arguments: object) -> list[str]:
    return ["-m", "rfedge", "train", "--config", "tiny", *(str(argument) for argument in arguments)]


def test_a_mistake_that_all_processes_meet_is_printed_once(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prints it, the other leaves torchrun a record, and both exit with 2."""
    record = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(record))
    output = ("--data", demonstrations, "--output", tmp_path / "run")
    processes = run_processes(cli(*output, "--batch-size", 1, "--steps", 1))
    assert [process.returncode for process in processes] == [2, 2]
    said = "".join(process.stderr for process in processes)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("rfedge: ")]
    expected = "batch_size: got 1, expected at least 2, as many as there are processes times passes"
    assert expected in line
    assert expected in json.loads(record.read_text())["message"]["message"]


@pytest.mark.slow
def test_torchrun_starts_it(demonstrations: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--data", str(demonstrations), "--output", str(tmp_path / "run"), "--steps", "2", "--json"]
    every = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *cli(*options, "--head-first-steps", 1, "--batch-size", 2)]
    done = subprocess.run(command, env=every, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert json.loads(done.stdout)["steps"] == 2
    assert done.stderr.count("training  ") <= 1  # one bar
    failed = subprocess.run([*command, "--loss", "l2"], env=every, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert failed.returncode == 1  # torchrun's own; the processes' is in its report
    assert 1 <= failed.stderr.count("loss: got 'l2'") <= 2  # by the first process, in torchrun's report, or in both
    assert "exitcode  : 2" in failed.stderr


def test_passes_add_up_to_one_batch(plain: Configure, co_training: Configure, tmp_path: Path) -> None:
    for name, build in (("plain", plain), ("pairs", co_training)):
        train_policy(build(tmp_path / name))
        train_policy(build(tmp_path / f"{name}-3", accumulate=3))
        assert_same_curve(tmp_path / name, tmp_path / f"{name}-3")


def test_what_each_process_takes() -> None:
    for world_size, accumulate, total in ((1, 1, 5), (2, 1, 5), (3, 2, 17), (2, 3, 6)):
        parts = [part for rank in range(world_size) for part in Processes(rank, world_size).parts(total, accumulate)]
        taken = [number for part in parts for number in range(total)[part]]
        assert taken == list(range(total))
        assert len(parts) == world_size * accumulate
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1
    shares = [list(Processes(rank, 2).shares([1, 2, 3, 4, 5, 6, 7], 3)) for rank in range(2)]
    assert shares[0] == [([1], True), ([4], True), ([7], False)]
    assert shares[1] == [([2, 3], True), ([5, 6], True), ([7], True)]


def test_a_batch_must_hold_something_for_every_pass(plain: Configure, co_training: Configure, tmp_path: Path) -> None:
    with raises(ConfigError, "batch_size", got=5, expected="at least 6...processes times passes"):
        train_policy(plain(tmp_path / "run", accumulate=6))
    with raises(ConfigError, "image_text_batch_size", got=5, expected="at least 6..."):
        train_policy(co_training(tmp_path / "run", accumulate=6, batch_size=6))


def test_options_that_do_not_go_together(plain: Configure, tmp_path: Path) -> None:
    with raises(ConfigError, "mixed-precision", got="fp16 on the CPU", expected="bf16 or no there"):
        plain(tmp_path, mixed_precision="fp16")
    with raises(ConfigError, "optimizer", got="adamw-8bit with parallel fsdp"):
        plain(tmp_path, optimizer="adamw-8bit", parallel="fsdp")
    with raises(ConfigError, "parallel", got="'tensor'", expected="input should be 'ddp' or 'fsdp'"):
        plain(tmp_path, parallel="tensor")


def test_half_an_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(ConfigError, "WORLD_SIZE=2", got="no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT", remedy="...torchrun..."):
        join("cpu").__enter__()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with raises(ConfigError, "WORLD_SIZE", got="'two'"):
        join("cpu").__enter__()
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    with raises(ConfigError, "device", got="'cuda:1'", expected="cuda, of which every process takes the GPU..."):
        join("cuda:1").__enter__()
    if not torch.cuda.is_available():
        with raises(BackendUnavailableError, "device", got="0 CUDA GPUs that PyTorch can use"):
            join("cuda").__enter__()


def test_bf16_stays_near_and_keeps_float32(plain: Configure, tmp_path: Path) -> None:
    """The MatMuls are rounded to 8 bits; weights, moments and the loss are not."""
    train_policy(plain(tmp_path / "no"))
    result = train_policy(plain(tmp_path / "bf16", mixed_precision="bf16"))
    assert_same_curve_of_loss(tmp_path / "no", tmp_path / "bf16")
    state = tmp_path / "bf16" / "state" / "step-0000005"
    for path in (result.checkpoint / "model.safetensors", state / "parameters.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
    moments = load_file(state / "optimizer.safetensors")
    assert {tensor.dtype for name, tensor in moments.items() if name.startswith("exp_avg")} == {torch.float32}
    with raises(ConfigError, "mixed_precision of the run in ...", got="no", expected="bf16, with which it was started"):
        train_policy(plain(tmp_path / "bf16", steps=6))


def assert_same_curve_of_loss(expected: Path, got: Path) -> None:
    left, right = ([row["loss"] for row in rows(path) if "loss" in row] for path in (expected, got))
    assert left != right
    assert right == pytest.approx(left, rel=0.1)


def test_fp16_looks_for_its_scale_and_resumes(plain: Configure, tmp_path: Path) -> None:
    """On a CPU in spite of what the options allow, with a head that has a kernel there: the search is the same."""

    def half(name: str, steps: int) -> TrainConfig:
        config = plain(tmp_path / name, steps=steps, head_first_steps=0, schedule="constant", warmup_steps=0, batch_size=2)
        mlp = {"kind": "mlp", "hidden_size": 16, "mlp_sizes": [16], "dropout": 0.0}
        policy = PolicyConfig.model_validate({**config.policy.model_dump(), "head": mlp})
        return config.model_copy(update={"mixed_precision": "fp16", "policy": policy})

    train_policy(half("whole", 4))
    train_policy(half("parts", 2))
    train_policy(half("parts", 4))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    scales = [row["loss_scale"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert scales[0] in (65536.0, 32768.0)
    state = json.loads((tmp_path / "parts" / "state" / "step-0000004" / "state.json").read_text())
    assert state["progress"]["scaler"]["scale"] == scales[-1]


def test_states_of_before_still_load(plain: Configure, tmp_path: Path) -> None:
    """A state that was written when there was one precision and one optimizer."""
    train_policy(plain(tmp_path / "run", steps=3))
    path = tmp_path / "run" / "state" / "step-0000003" / "state.json"
    document = json.loads(path.read_text())
    del document["progress"]["scaler"], document["decisive"]["mixed_precision"], document["decisive"]["optimizer"]
    path.write_text(json.dumps(document))
    with raises(ConfigError, "mixed_precision of the run in ...", got="bf16", expected="no, with which it was started"):
        train_policy(plain(tmp_path / "run", mixed_precision="bf16"))
    assert train_policy(plain(tmp_path / "run", steps=4, accumulate=2)).steps == 4


def test_eight_bit_moments(plain: Configure, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"optimizer": "adamw-8bit", "schedule": "constant", "warmup_steps": 0}
    train_policy(plain(tmp_path / "whole", **options))
    train_policy(plain(tmp_path / "parts", steps=4, **options))
    train_policy(plain(tmp_path / "parts", **options))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    moments = load_file(tmp_path / "whole" / "state" / "step-0000005" / "optimizer.safetensors")
    large = [name for name, tensor in moments.items() if name.startswith("state1.") and tensor.numel() >= 4096]
    assert large
    assert all(moments[name].dtype == torch.uint8 for name in large)


def test_without_bitsandbytes_it_is_told(plain: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with raises(BackendUnavailableError, "bitsandbytes", remedy="Install it: pip install 'rfedge[bnb]'."):
        train_policy(plain(tmp_path / "run", optimizer="adamw-8bit"))


def test_parameters_that_a_loss_does_not_reach() -> None:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    assert reach_all([(first * second).sum()], [first, second])
    assert reach_all([first.sum(), second.sum()], [first, second])
    assert not reach_all([(first * second.detach()).sum()], [first, second])
