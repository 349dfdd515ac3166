"""How long work reports how far it is: the one type of callback for it, and the part of it that one stage calls."""

from __future__ import annotations

from collections.abc import Callable

# (done, total) of one kind of thing, called before the first and after each
Count = Callable[[int, int], None]
# (stage, done, total): what is going on, and its Count
StageProgress = Callable[[str, int, int], None]
