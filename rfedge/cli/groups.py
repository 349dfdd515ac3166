"""Groups of commands: one with an argument of its own, and the order in which `--help` lists them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

__all__ = [
    "CommandWithSubcommands",
    "InOrderOfWork",
]


class CommandWithSubcommands(TyperGroup):
    """The first word decides: the name of a subcommand, or else the start of this command's own arguments.

    Typer alone would read the subcommand's name as the argument. Use with `invoke_without_command=True` and
    `context_settings={"allow_interspersed_args": True, "allow_extra_args": False}`: flags may follow the argument, as
    in any command.
    """

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the subcommand, or of this command."""
        if args and (subcommand := self.commands.get(args[0])) is not None:
            return subcommand.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


class InOrderOfWork(TyperGroup):
    """Lists commands as an engineer meets them: data, checkpoint, bundle, robot, measurement."""

    _ORDER = (
        *("doctor", "demos", "pretrain", "train", "import", "export", "verify", "inspect", "build"),
        *("run", "replay", "serve", "bench"),
    )

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, known ones first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: self._ORDER.index(name) if name in self._ORDER else len(self._ORDER))
