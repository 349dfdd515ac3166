"""Options of commands, made from the fields of the plans that they fill.

A field is annotated with `rfedge.records.plan.Option`; `with_options` adds the option to a command and `plan_of` makes the
plan of what typer read. What a command alone needs it declares as a parameter, as typer does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

from rfedge.errors import ConfigError, one_of
from rfedge.records.plan import Option, Uses

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P")
_REQUIRED: Final = inspect.Parameter.empty
Output = Annotated[Path | None, typer.Option(help="Write the JSON document here too.")]
_json_is_asked = False


def _keep_asked(asked: bool) -> bool:
    global _json_is_asked
    _json_is_asked = asked
    return asked


def wants_json() -> bool:
    """Whether stdout belongs to the document of `--json`; everything else then goes to stderr."""
    return _json_is_asked


# Every command that prints a document declares it; what prints asks `wants_json`.
AsJson = Annotated[
    bool, typer.Option("--json", callback=_keep_asked, help="Print one JSON document on stdout, the rest on stderr.")
]


def with_options(*plans: type[Any]) -> Callable[[F], F]:
    """Return a decorator that adds the options of `plans` to a command, which receives them as `**given` for `plan_of`."""

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        added = [flag.parameter() for plan in plans for flag in _flags(plan)]
        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*added, *own)]
        # typer reads the signature, and hands over by name: all of them may follow each other, with or without defaults
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def plan_of(plan: type[P], given: Mapping[str, Any], **fixed: Any) -> P:
    """Return the plan that a command line asks for; `fixed` are fields that are no options, or that the command decides."""
    return plan(**{**given_fields(plan, given), **fixed})


def given_fields(plan: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `plan` that the command line sets to something else than their default."""
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for flag in _flags(plan):
        if (raw := given[flag.name]) != flag.default:
            if len(flag.path) == 1:
                values[flag.path[0]] = flag.convert(raw)
            else:
                inner.setdefault(flag.path[0], {})[flag.path[1]] = flag.convert(raw)
    fields = {name: (_plain(hint)[0], default) for name, hint, default in _fields(plan)}
    for name, changes in inner.items():
        kind, base = fields[name]
        if base is not None:
            values[name] = dataclasses.replace(base, **changes)
        elif {item for item, _, default in _fields(kind) if default is _REQUIRED} <= changes.keys():
            values[name] = kind(**changes)
    return values


@dataclass(frozen=True)
class _Flag:
    """One option: the path to its field, the field's type without None, and the default as the command line shows it."""

    path: tuple[str, ...]
    option: Option
    kind: Any
    is_optional: bool
    default: Any
    panel: str | None

    @property
    def flag(self) -> str:
        return self.option.flag or f"--{self.path[-1].replace('_', '-')}"

    @property
    def name(self) -> str:
        return self.path[-1] if self.option.argument else self.flag.removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...]:
        item = _plain(self._item)[0]
        return self.option.choices or (get_args(item) if get_origin(item) is Literal else ())

    @property
    def _item(self) -> Any:
        """The type of a tuple's items, or of the value itself."""
        return get_args(self.kind)[0] if get_origin(self.kind) is tuple else self.kind

    @property
    def _is_repeated(self) -> bool:
        return get_origin(self.kind) is tuple and not self.option.commas and self.option.text is None

    def parameter(self) -> inspect.Parameter:
        option, kind = self.option, self.kind
        if self._is_repeated:
            kind = list[self._item]  # type: ignore[name-defined]
        elif self.choices or option.commas or (option.parse is not None and kind is not Path):
            kind = str
        flag = self.flag
        if kind is bool and (self.default is True or self.is_optional):
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        settings: dict[str, Any] = {"help": option.help, "min": option.min, "max": option.max, "rich_help_panel": self.panel}
        if self.choices and not option.commas:
            settings["metavar"] = f"[{'|'.join(self.choices)}]"
        if kind is int:
            settings |= {name: None if settings[name] is None else int(settings[name]) for name in ("min", "max")}
        declared = typer.Argument(**settings) if option.argument else typer.Option(flag, **settings)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=Annotated[kind if self.default is not None else kind | None, declared],
        )

    def convert(self, raw: Any) -> Any:
        if self.option.commas:
            return tuple(self._one(part.strip()) for part in raw.split(",") if part.strip())
        return tuple(map(self._one, raw)) if self._is_repeated else self._one(raw)

    def _one(self, raw: Any) -> Any:
        if self.choices:
            one_of(self.choices, raw, self.flag)
        if self.option.parse is not None:
            return self.option.parse(raw)
        if self.option.commas and self._item in (int, float):
            try:
                return self._item(raw)
            except ValueError:
                expected = "whole numbers" if self._item is int else "numbers"
                raise ConfigError(self.flag, got=repr(raw), expected=expected, remedy="Put commas between: 1,4.") from None
        return raw


def _flags(plan: type[Any]) -> Iterator[_Flag]:
    panel: str | None = None
    for name, hint, default in _fields(plan):
        marks = getattr(hint, "__metadata__", ())
        kind, is_optional = _plain(hint)
        for mark in marks:
            if isinstance(mark, Uses):
                used = {flag.path[0]: flag for flag in _flags(kind)}
                panel = mark.panel or panel
                for field, text in (mark.helps or dict.fromkeys(used)).items():
                    flag = used[field]
                    option = flag.option if text is None else dataclasses.replace(flag.option, help=text)
                    shown = flag.default if default is None else _shown(flag.option, getattr(default, field))
                    yield dataclasses.replace(
                        flag, path=(name, field), option=option, default=shown, panel=flag.panel or panel
                    )
            elif isinstance(mark, Option):
                panel = mark.panel or panel
                yield _Flag((name,), mark, kind, is_optional, _shown(mark, default), panel)


def _shown(option: Option, default: Any) -> Any:
    """Return a field's default as the command line shows it, and reads it back."""
    if option.text is not None:
        return option.text
    if option.optional:
        return None
    if option.commas and default is not _REQUIRED:
        return ",".join(map(str, default)) or None
    return None if default == () else default


def _fields(plan: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type as annotated, and default of each field."""
    hints = get_type_hints(plan, include_extras=True)
    if issubclass(plan, BaseModel):
        for name, field in plan.model_fields.items():
            yield name, hints[name], _REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        return
    for item in dataclasses.fields(plan):
        if item.init:
            made = item.default_factory
            default = item.default if made is dataclasses.MISSING else made()
            yield item.name, hints[item.name], _REQUIRED if default is dataclasses.MISSING else default


def _plain(hint: Any) -> tuple[Any, bool]:
    """Return a type without annotations and None, and whether None was in it."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)], NoneType in get_args(hint)  # noqa: UP007 - made of a list


def checkpoint_folder(value: Path | None) -> Path | None:
    """Return `value`, or the checkpoint of the shipped policy that it names."""
    from rfedge.policies import find_checkpoint

    return None if value is None else find_checkpoint(value)


def bundle_folder(value: Path | None) -> Path | None:
    """Return `value`, or the bundle of the shipped policy that it names."""
    from rfedge.policies import find_bundle

    return None if value is None else find_bundle(value)
