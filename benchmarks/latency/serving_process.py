"""A `rfedge serve` in a process of its own, as a robot meets it, started and ended by whoever measures or tests it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from rfedge.errors import BackendUnavailableError
from rfedge.runtimes.server.security import TOKEN_VARIABLE

_COMMAND: Final = "import sys; from rfedge.cli.app import main; main(sys.argv[1:])"


class ServingProcess(AbstractContextManager["ServingProcess"]):
    """A context manager: it has started when clients can connect, and is killed at the end if it still runs."""

    def __init__(self, bundle: Path, *flags: str, token: str | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        if token is not None:
            environment[TOKEN_VARIABLE] = token
        self._errors: Final = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self.process: Final = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "serve", str(bundle), "--port", "0", "--json", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            words = self.errors().strip()
            self.close()
            remedy = "Run it by hand with the same flags."
            raise BackendUnavailableError("rfedge serve", got=words, expected="a server", remedy=remedy)
        self.greeting: Final[dict[str, Any]] = json.loads(line)

    @property
    def url(self) -> str:
        return str(self.greeting["url"])

    def errors(self) -> str:
        """Return what it has written on stderr so far."""
        self._errors.seek(0)
        return self._errors.read()

    def terminate(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=20.0)

    def close(self) -> None:
        """Kill it if it still runs; a second call does nothing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()

    def __exit__(self, *_: object) -> None:
        self.close()
