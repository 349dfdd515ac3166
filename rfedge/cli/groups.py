"""Groups of commands: loaded by name when one is called, and one with an argument of its own.

`commands.json` holds group -> command -> [MODULE:FUNCTION, or MODULE:APP for a group; line in `--help`], in its order.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


class LazyCommand(TyperCommand):
    """A name and a sentence for `--help`; its module is imported when it is called."""

    def __init__(self, name: str, target: str, sentence: str) -> None:
        super().__init__(name, help=sentence)
        self._target = target

    def load(self) -> Any:
        module, attribute = self._target.split(":")
        loaded = getattr(import_module(module), attribute)
        if isinstance(loaded, typer.Typer):
            return get_group(loaded)
        app = typer.Typer(add_completion=False)
        app.command(self.name, help=self.help)(loaded)
        return get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)


def lazy_group(group: str) -> type[TyperGroup]:
    """Return a class for `typer.Typer(cls=...)` with the commands of a group in `commands.json`."""
    commands = json.loads(Path(__file__).with_name("commands.json").read_bytes())[group]

    class Group(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for name, (target, sentence) in commands.items():
                self.add_command(LazyCommand(name, f"rfedge.cli.{target}", sentence))

    return Group


class CommandWithSubcommands(TyperGroup):
    """The first word decides: the name of a subcommand, or else the start of this command's own arguments.

    Typer alone would read the subcommand's name as the argument. Use with `invoke_without_command=True` and
    `context_settings={"allow_interspersed_args": True, "allow_extra_args": False}`: flags may follow the argument, as
    in any command.
    """

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args and (subcommand := self.commands.get(args[0])) is not None:
            return subcommand.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)
