"""A journal that survives kills, and refuses what is not its own."""

import json
import random
from pathlib import Path

import pytest

from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.journal import open_journal, read_journal, write_line
from tests.errors import raises

ARGUMENTS = {"seed": 1, "tasks": ("a", "b"), "agent": {"name": "x"}}


def write(path: Path, *numbers: int) -> None:
    with open_journal(path, ARGUMENTS) as journal:
        for number in numbers:
            journal.append({"number": number})


def test_records_are_there_again_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    write(path, 3, 1)
    write(path, 2)
    with open_journal(path, ARGUMENTS) as journal:
        assert [record["number"] for record in journal.records] == [3, 1, 2]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"arguments": {"seed": 1, "tasks": ["a", "b"], "agent": {"name": "x"}}, "crc32": lines[0]["crc32"]}
    assert len(lines) == 4


def test_a_record_is_readable_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with open_journal(path, ARGUMENTS) as journal:
        journal.append({"number": 1})
        assert path.read_bytes().endswith(b'{"number": 1, "crc32": "ee968151"}\n')


@pytest.mark.parametrize("kept", range(1, 14))
def test_a_half_written_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 2}\n'[:kept])
    write(path, 3)
    assert [json.loads(line).get("number") for line in path.read_text().splitlines()] == [None, 1, 3]


def test_a_kill_before_the_first_record_lets_the_arguments_change(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    header = write_line({"arguments": {"seed": 9}})
    for leftover in (b"", b'{"argum', header, header + b'{"num'):
        path.write_bytes(leftover)
        write(path, 1)
        assert [record.get("number") for record in map(json.loads, path.read_text().splitlines())] == [None, 1]


def test_without_a_record_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no renderer"), open_journal(tmp_path / "new" / "j.jsonl", ARGUMENTS):
        raise OSError("no renderer")
    assert list(tmp_path.iterdir()) == []
    with open_journal(tmp_path / "j.jsonl", ARGUMENTS):
        pass
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_other_arguments_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1)
    before = path.read_bytes()
    for other, what, got, started in (
        ({**ARGUMENTS, "seed": 2}, "seed", 2, 1),
        ({**ARGUMENTS, "agent": {"name": "y"}}, "agent", {"name": "y"}, {"name": "x"}),
        ({"seed": 1, "tasks": ["a", "b"]}, "agent", "", {"name": "x"}),
    ):
        expected = f"{started}, with which it was started"
        with raises(ConfigError, f"{what} of the run in {tmp_path}", got=got, expected=expected), open_journal(path, other):
            pass
    assert path.read_bytes() == before


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with open_journal(path, ARGUMENTS) as journal:
        with raises(ConfigError, got="a run that is still going on", expected="one process per folder"):
            write(path, 2)
        journal.append({"number": 1})
    assert len(path.read_text().splitlines()) == 2


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with raises(ConfigError, got="something without a j.jsonl", expected="an empty or new folder"):
        write(tmp_path / "j.jsonl", 1)
    with raises(ConfigError, got="something without a j.jsonl"):
        write(tmp_path / "thesis.txt" / "j.jsonl", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1, 2)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "nonsense", lines[2]]) + "\n")
    with raises(ArtifactError, "line 2 of ...j.jsonl", got="no checksum, or text that is no record"):
        write(path, 3)


@pytest.mark.attack
def test_a_changed_byte_is_never_another_record(tmp_path: Path) -> None:
    """Any byte but the last newline, changed to any other: refused. Without it the last line counts as not written."""
    path, rng = tmp_path / "j.jsonl", random.Random(0)
    write(path, 1, 23, 456)
    whole = path.read_bytes()
    for index in range(len(whole) - 1):
        for changed in {whole[index] ^ 1 << rng.randrange(8), rng.choice(b'\n\r {}0"')} - {whole[index]}:
            path.write_bytes(whole[:index] + bytes([changed]) + whole[index + 1 :])
            with raises(ArtifactError, "line ... of ...") as error:
                read_journal(path)
            assert "\n" not in str(error.value)
    path.write_bytes(whole[:-1] + b"x")
    assert [record["number"] for record in read_journal(path)] == [1, 23]


@pytest.mark.attack
@pytest.mark.parametrize("header", [b"[]", b"3", b"{}", b'{"arguments": 3}', b"[" * 100_000, b'{"arguments": [1]}', b"\xff"])
def test_a_damaged_header_is_one_line(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([header, *lines[1:]]))
    with raises(ArtifactError, "line 1 of ..."):
        write(path, 2)
    forged = write_line(json.loads(header)) if header.startswith(b'{"') else write_line({"arguments": None})
    path.write_bytes(forged + b"\n".join(lines[1:]))
    with raises(ArtifactError, "line 1 of ...", got="no arguments"):
        write(path, 2)


@pytest.mark.attack
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    path = small_disk / "d" / "j.jsonl"
    with open_journal(path, ARGUMENTS) as journal:
        journal.append({"number": 1})
        before = path.read_bytes()
        with raises(ArtifactError, "...j.jsonl", got="a full disk", expected="room for what is written"):
            journal.append({"number": 2, "text": "x" * 3_000_000})
        assert path.read_bytes() == before
        journal.append({"number": 3})
    assert [record["number"] for record in read_journal(path)] == [1, 3]
