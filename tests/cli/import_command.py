"""Runs `rfedge import` as its console script does, in this process."""

import pytest

from rfedge.cli.app import main


def run_import(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main(["import", *(str(argument) for argument in arguments)])
    return int(raised.value.code or 0)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of the error, which is the last; a progress bar may have begun before."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    lines = [line for line in captured.err.splitlines() if line]
    assert [line for line in lines if line.startswith("rfedge: ")] == lines[-1:], captured.err
    return lines[-1]
