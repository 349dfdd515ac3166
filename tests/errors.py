"""Errors are compared by their parts, not by their sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rfedge.errors import RfedgeError


@contextmanager
def raises(error: type[RfedgeError], subject: object = None, **parts: object) -> Iterator[pytest.ExceptionInfo[RfedgeError]]:
    """Expect `error` with this subject, got, expected and remedy; `...` in a part stands for any text."""
    with pytest.raises(error) as raised:
        yield raised
    for name, part in {"subject": subject, **parts}.items():
        found = getattr(raised.value, name)
        if part is not None and not re.fullmatch(re.escape(str(part)).replace(r"\.\.\.", ".*"), found, re.DOTALL):
            pytest.fail(f"{name} is {found!r}, not {str(part)!r}: {raised.value}")
