"""The `rfedge` command: parse, call one library function, print. One file a command, every import inside it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

from rfedge.cli.groups import lazy_group
from rfedge.errors import GateError, RfedgeError

app = typer.Typer(
    name="rfedge",
    cls=lazy_group("rfedge"),
    help="Take a RoboFlamingo-style policy from checkpoint to a robot's own computer, and prove it still works there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug keeps Python's own traceback
)


@app.callback()
def _rfedge(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda asked: _print_version(asked), help="Print it.")
    ] = False,
) -> None:
    pass


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"rfedge {version('rfedge')}")
        raise typer.Exit


# Which extra brings a library that the core does without.
_EXTRAS = {
    module: extra
    for extra, modules in {
        "export": ("torch", "onnxscript", "onnx_ir"),
        "train": ("tensorboard",),
        "sim": ("mujoco", "PIL", "imageio"),
        "data": ("h5py", "pyarrow", "av", "yaml"),
        "serve": ("prometheus_client",),
    }.items()
    for module in modules
}


# Newer versions of typer bring their own copy of click: the exceptions are found through what typer itself raises.
_ClickException: type[Any] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's error ends in one line on stderr and exit status 2, a missed gate in one and 1."""
    for name in ("SIGTERM", "SIGHUP"):  # unwind, so that temporary files are removed
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        status = app(args=arguments, standalone_mode=False)
    except RfedgeError as error:
        _tell(error, _one_line(error))
        sys.exit(1 if isinstance(error, GateError) else 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise  # a module of our own that is missing is a bug
        print(
            f"rfedge: this command: got no {error.name}, expected the '{extra}' extra. "
            f"Install it: pip install 'rfedge[{extra}]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    except _ClickException as error:
        if "embedded null" in (text := error.format_message()):  # by some versions of typer, others let it through
            _tell(error, f"{_one_line(text)}. Leave the NUL character out.")
        else:
            _tell(error)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        print("rfedge: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (text := _machine_s_fault(error)) is None:
            raise
        _tell(error, _one_line(text))
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(text: object) -> str:
    """Return the text on one line, with words that nobody reads cut, such as a path of 5,000 characters."""
    return " ".join(word if len(word) <= 300 else f"{word[:100]}...{word[-100:]}" for word in str(text).split())


def _machine_s_fault(error: Exception) -> str | None:
    """Return the one line about a disk, a path or a memory that will not do; None for a bug, which keeps its traceback."""
    from rfedge.errors import explain
    from rfedge.io.disk import disk_error

    if isinstance(error, MemoryError) or any(text in str(error) for text in ("can't allocate memory", "out of memory")):
        got = f"not enough ({_one_line(error)[:120]})"
        return explain("memory", got=got, expected="room for these sizes", remedy="Choose smaller ones.")
    translated = disk_error(error, None)
    return None if translated is None else str(translated)


def _tell(error: Exception, text: str | None = None) -> None:
    """Print a user's error, by default as typer shows it."""
    # Of processes that torchrun started the first prints; the others leave torchrun a record to show.
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        ErrorHandler().record_exception(error)
    elif text is not None:
        print(f"rfedge: {text}", file=sys.stderr)
    elif isinstance(error, _ClickException):
        error.show()


if __name__ == "__main__":
    main()
