"""A bundle that knows a list of sentences instead of all words: same features, a small file, plain refusals."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

from rfedge.bundle.artifact import Bundle, BundleWriter, load_bundle, write_bundle
from rfedge.cli.app import app, main
from rfedge.config import DecoderConfig, Precision
from rfedge.errors import ArtifactError, ConfigError, ContractError
from rfedge.export import language
from rfedge.export.language import StoredTable, choose_sentences, stored_table, write_language
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.language.instructions import MAX_SENTENCES, InstructionTable, write_instruction_table
from rfedge.messages import Observation
from rfedge.model import Checkpoint, load_checkpoint
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.policy.text import EmbeddedInstruction, EmbeddingTable, InstructionEncoder, pad_instruction
from tests.errors import raises
from tests.synthetic_demonstrations import TASKS
from tests.tolerances import assert_same_in_fp32, backbone_terms

SENTENCES = ("pull the drawer open", "Push the drawer shut", "push the drawer shut.", "go")


@pytest.fixture(scope="module")
def checkpoint(checkpoints: dict[str, Path]) -> Checkpoint:
    return load_checkpoint(checkpoints["window"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_sentence_is_embedded_as_by_the_whole_table(
    checkpoint: Checkpoint, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "_LARGE_BYTES", 0)  # so that int8 is stored in 8 bits, as of a full-size model
    for name, sentences in (("whole", None), ("known", SENTENCES)):
        (tmp_path / name).mkdir()
        stored = stored_table(checkpoint.config.decoder, precision)
        write_language(checkpoint, stored, sentences, BundleWriter(tmp_path / name))
    decoder: DecoderConfig = checkpoint.config.decoder
    any_words = InstructionEncoder(
        checkpoint.tokenizer, EmbeddingTable(tmp_path / "whole" / "embedding.safetensors", decoder.width)
    )
    path = tmp_path / "known" / "instructions.safetensors"
    table = InstructionTable(path, decoder.text_length)
    known = InstructionEncoder(table, EmbeddingTable(path, decoder.width))
    assert table.sentences == SENTENCES
    for sentence in SENTENCES:
        np.testing.assert_array_equal(known(f"  {sentence}\n").embedding, any_words(sentence).embedding)
        np.testing.assert_array_equal(known(sentence).mask, any_words(sentence).mask)
    assert not np.array_equal(known(SENTENCES[1]).embedding, known(SENTENCES[2]).embedding), "case and full stop count"
    with safe_open(path, framework="numpy") as file:
        assert file.get_tensor("embedding").dtype == {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]
        distinct = {int(token) for sentence in SENTENCES for token in np.unique(checkpoint.tokenizer.encode(sentence)[0])}
        assert len(file.get_tensor("embedding")) <= len(distinct), "only rows that a sentence reads"
    padded = InstructionEncoder(table, EmbeddingTable(path, decoder.width), padded=True)("go")
    assert padded.embedding.shape == (1, decoder.text_length, decoder.width)
    assert padded.mask.sum() == known("go").mask.sum()


@pytest.fixture(scope="module")
def few(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that knows two sentences, made by the command."""
    tmp_path = tmp_path_factory.mktemp("instructions")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("pull the drawer open\n\n push the button \npush the button\n")
    exported = CliRunner().invoke(
        app,
        [
            *("export", str(checkpoints["window"]), "--output", str(tmp_path / "few"), "--instructions", str(sentences)),
            *("--parity-steps", "2", "--json"),
        ],
    )
    assert exported.exit_code == 0, exported.output
    return load_bundle(tmp_path / "few")


def test_a_bundle_with_sentences_runs_and_refuses_others_at_the_start(
    few: Bundle, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFEDGE_CALVIN_PYTHON", "/nowhere/python")
    roles = {artifact.role for artifact in few.manifest.artifacts}
    assert roles == {"backbone", "head", "instructions", "proof"} | ({"weights"} if "weights" in roles else set())
    with write_bundle(tmp_path / "whole") as writer:  # the same graphs beside tokenizer and whole table
        for artifact in few.manifest.artifacts:
            if artifact.role != "instructions":
                shutil.copy(few.root / artifact.path, writer.add(artifact.path, artifact.role))
        write_language(checkpoint, StoredTable("float32"), None, writer)
        writer.finish(few.manifest)
    whole = load_bundle(tmp_path / "whole")
    assert few.path("instructions").stat().st_size < 0.2 * whole.path("embedding").stat().st_size
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    observation = Observation(image, image[:84, :84].copy())
    with EdgePolicy.load(few.root) as ours, EdgePolicy.load(whole.root) as theirs:
        for instruction in ("push the button", "pull the drawer open"):
            results = [policy.infer(observation, instruction, policy.initial_state()) for policy in (ours, theirs)]
            np.testing.assert_array_equal(results[0].actions, results[1].actions)
            np.testing.assert_array_equal(results[0].state.h, results[1].state.h)
        with raises(ContractError, expected="one of the 2 sentences of this bundle, such as 'pull the..."):
            ours.reset("zzzz")
    for goal in (["--instruction", "push a button"], ["--task", "close_drawer"]):
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(few.root), *goal, "--env", "calvin", "--max-steps", "1"])
        assert stopped.value.code == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line
        assert line.startswith("rfedge: instruction: got 'pu"), "and not: no calvin_env is there"
        nearest = "push the button" if goal[0] == "--instruction" else "pull the drawer open"
        assert f"expected one of the 2 sentences of this bundle, nearest: {nearest!r}. Say one" in line


def test_padding_to_a_static_length_leaves_the_feature(few: Bundle) -> None:
    """Padded tokens are masked before the pool, so an engine may run an instruction in any profile that it fits."""
    inputs, terms = few.contract.backbone.sample_inputs(np.random.default_rng(0)), backbone_terms(few.policy)
    with EdgePolicy.load(few.root) as policy:
        text = policy.parts.encoder("push the button")
        num_tokens = text.mask.shape[1]

        def feature(text: EmbeddedInstruction) -> npt.NDArray[np.float32]:
            language = {"text_embedding": text.embedding, "text_mask": text.mask}
            return policy.parts.backbone.infer({**inputs, **language})["feature"]

        exact = feature(text)
        for length in range(num_tokens, 17):
            padded = pad_instruction(text, length)
            assert padded.embedding.shape == (1, length, few.policy.decoder.width)
            assert padded.mask.sum() == num_tokens
            assert_same_in_fp32(feature(padded), exact, terms)
        loud = np.random.default_rng(1).normal(scale=5.0, size=padded.embedding.shape).astype(np.float32)
        loud = np.where(padded.mask[..., None], padded.embedding, loud)
        masked = dataclasses.replace(padded, embedding=loud)
        assert_same_in_fp32(feature(masked), exact, terms, "what is padded does not matter")
        unmasked = dataclasses.replace(masked, mask=np.ones_like(padded.mask))
        assert np.abs(feature(unmasked) - exact).max() > 1e-4, "the mask is what keeps the feature"
        with raises(ContractError, "instruction", got=f"{num_tokens} tokens", expected="at most 2"):
            pad_instruction(text, 2)


def test_sentences_of_the_demonstrations(checkpoint: Checkpoint, demonstrations: Path, tmp_path: Path) -> None:
    from rfedge.data import CalvinDataset

    found = choose_sentences("data", checkpoint.tokenizer, CalvinDataset.open(demonstrations))
    assert found == tuple(sorted(TASKS.values()))
    (tmp_path / "sentences.json").write_text(json.dumps(["b", " a ", "b"]))
    assert choose_sentences(str(tmp_path / "sentences.json"), checkpoint.tokenizer, None) == ("b", "a")
    assert choose_sentences(None, checkpoint.tokenizer, None) is None


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("none.txt", None, "no file ...none.txt"),
        ("empty.txt", b"", "0 sentences"),
        ("blank.txt", b"\n \n", "0 sentences"),
        ("empty.json", b"[]", "0 sentences"),
        ("half.json", b'["open', "half.json with Unterminated string..."),
        ("other.json", b'{"a": 1}', "other.json with a dict"),
        ("deep.json", b"[" * 100_000, "deep.json with ...recursion..."),
        ("number.json", b'["open", 3]', "3 as sentence 2"),
        ("gap.json", b'["open", " "]', "' ' as sentence 2"),
        ("latin.txt", b"\xff\xfe\xe4", "latin.txt with 'utf-8' codec can't decode..."),
        ("endless.txt", b"a" * 1001, "1001 characters in sentence 1"),
        ("many.txt", "\n".join(map(str, range(MAX_SENTENCES + 1))).encode(), "10001 sentences"),
    ],
)
def test_a_list_that_is_none_is_one_line(
    checkpoint: Checkpoint, tmp_path: Path, name: str, content: bytes | None, got: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with raises(ConfigError, "--instructions", got=got) as caught:
        choose_sentences(str(tmp_path / name), checkpoint.tokenizer, None)
    assert "\n" not in str(caught.value)


def test_a_sentence_that_is_too_long_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"go\n" + b"xyz " * 60)
    with raises(ConfigError, "--instructions, sentence 'xyz ...': instruction: got 243 tokens, expected at most 16..."):
        choose_sentences(str(tmp_path / "long.txt"), checkpoint.tokenizer, None)
    with raises(ConfigError, got="data without demonstrations", expected="--data DIR beside it"):
        choose_sentences("data", checkpoint.tokenizer, None)


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: object) -> Path:
        tensors: dict[str, object] = {
            "embedding": np.zeros((3, 4), np.float32),
            "rows": np.array([0, 1, 2], np.int32),
            "ends": np.array([1, 3], np.int64),
            "sentences": '["a", "b"]',
        } | changes
        metadata = tensors.pop("sentences")
        path = tmp_path / "instructions.safetensors"
        arrays = {name: np.asarray(array) for name, array in tensors.items() if array is not None}
        save_file(arrays, path, metadata=None if metadata is None else {"sentences": str(metadata)})
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"sentences": None}, "no list of sentences"),
        ({"sentences": "[1, 2]"}, "no list of sentences"),
        ({"sentences": "[]"}, "0 sentences"),
        ({"sentences": '["a", "a"]'}, "a sentence twice"),
        ({"sentences": '["a", " b"]'}, "an empty, padded or endless sentence..."),
        ({"sentences": '["a"]'}, "rows int32 (3,), ends int64 (2,)"),
        ({"rows": None}, "File does not contain tensor rows"),
        ({"rows": np.array([0.0, 1.0, 2.0])}, "rows float64 (3,), ends int64 (2,)"),
        ({"rows": np.array([0, 1, 3], np.int32)}, "rows 0 to 3"),
        ({"rows": np.array([0, -1, 2], np.int32)}, "rows -1 to 2"),
        ({"ends": np.array([1, 2], np.int64)}, "sentences of 1 to 1 tokens that end at 2 of 3"),
        ({"ends": np.array([3, 1], np.int64)}, "sentences of -2 to 3 tokens..."),
        ({"rows": np.zeros(9, np.int32), "ends": np.array([1, 9], np.int64)}, "sentences of 1 to 8 tokens..."),
    ],
)
def test_a_damaged_file_is_one_line(write_table: Callable[..., Path], changes: dict[str, object], got: str) -> None:
    InstructionTable(write_table(), 4)
    with raises(ArtifactError, "instructions instructions.safetensors", got=got):
        InstructionTable(write_table(**changes), 4)


def test_a_file_cut_short_is_one_line(write_table: Callable[..., Path]) -> None:
    path = write_table()
    path.write_bytes(path.read_bytes()[:-3])
    with raises(ArtifactError, "instructions instructions.safetensors", remedy="Export the bundle again."):
        InstructionTable(path, 4)


def test_the_largest_list_answers_at_once(tmp_path: Path) -> None:
    sentences = [f"push button number {index} of the long wall" for index in range(MAX_SENTENCES)]
    token_ids = [np.array([index % 7, 7]) for index in range(MAX_SENTENCES)]
    path = tmp_path / "instructions.safetensors"
    write_instruction_table(path, sentences, token_ids, np.arange(8), {"embedding": np.zeros((8, 4), np.float32)})
    table = InstructionTable(path, 16)
    ids, mask = table.encode(sentences[-1])
    np.testing.assert_array_equal(ids[mask], token_ids[-1])
    with raises(ContractError, got="'push button number 10000 of the long wall'", expected="one of the 10000..."):
        table.encode("push button number 10000 of the long wall")
    with raises(ContractError, got="...x...'"):
        table.encode("x" * 1_000_000)


def test_nothing_is_written_for_a_wrong_list(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(precision="fp32", instructions=str(tmp_path / "none.txt"))
    with raises(ConfigError, got="no file..."):
        export_checkpoint(checkpoints["window"], tmp_path / "bundle", options)
    with raises(ConfigError, got="data without demonstrations"):
        export_checkpoint(checkpoints["window"], tmp_path / "bundle", dataclasses.replace(options, instructions="data"))
    assert list(tmp_path.iterdir()) == []
