"""`robust`: each command's module is imported when the command runs, so that help answers at once."""

from __future__ import annotations

import _thread
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import click

from robustbench_local import __version__
from robustbench_local.errors import UserError, nearest

COMMANDS = {
    "attack": "Attack a classifier and report its clean and robust accuracy.",
    "compare": "Compare result files sample by sample.",
    "defend": "Train a more robust classifier.",
    "doctor": "Check that a model and its data can be evaluated together.",
    "gate": "Pass or fail result files by accuracy limits, for CI.",
    "train": "Train a classifier on clean images, from scratch or from published weights.",
    "list": "List models, datasets, attacks, defenses, configs or checks.",
    "predict": "Classify image files.",
}
"""Name -> one-line help. Each name has a module `robustbench_local.cli.NAME` with a function `NAME_command`."""
_MODULES = {"train": "defend"}


class Commands(click.Group):
    """A group with the names and one-line helps of the commands; it imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name == "version":
            return version_command
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"robustbench_local.cli.{_MODULES.get(name, name)}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = [*COMMANDS, "version"]
        if args and args[0] not in names and not args[0].startswith("-"):
            raise click.UsageError(f"There is no command {args[0]!r}.{nearest(args[0], names)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="robust")
def cli() -> None:
    """Measure how robust an image classifier is to adversarial examples, and train more robust ones.

    \b
    robust attack                        the bundled digits classifier, in seconds
    robust attack MODEL --data cifar10   your own classifier
    robust gate runs/x.json --min-robust 0.40
    """


@click.command("version", hidden=True)
def version_command() -> None:
    """Print the version, like 'robust --version'."""
    click.echo(f"robust, version {__version__}")


def main() -> None:
    """The entry point of the command line: run a command and exit with its code.

    Errors that a user can cause end in one line on stderr and exit code 2; an interrupted run ends in 130.
    """
    from robustbench_local.cli.terminal import routed_warnings

    # A canceled job and a closed terminal end like ctrl-C: a run keeps its results so far.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(getattr(signal, name), _interrupt)
    with routed_warnings(), interrupts_redelivered():
        code = _exit_code(sys.argv[1:])
    sys.exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_redelivered() -> Iterator[None]:
    """Inside, ctrl-C is not lost where it arrives in a destructor or a weak reference's callback.

    Python only reports an exception that is raised there, and the run would go on.
    """
    before = sys.unraisablehook

    def redeliver(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # nohup and a shell's background ignore SIGINT; SIGTERM has its handler then.
            handled = (each for each in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(each)))
            # A moment later: the signal would be handled, and lost again, before this function returns.
            again = threading.Timer(0.02, _thread.interrupt_main, [next(handled, signal.SIGINT)])
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    sys.unraisablehook = redeliver
    try:
        yield
    finally:
        sys.unraisablehook = before


def _is_out_of_file_handles() -> bool:
    """Whether no further file can be opened: an import that fails for this reason has no error of its own."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _exit_code(arguments: list[str]) -> int:
    """Run the command; print the error where it fails."""
    context = None
    try:
        # Not cli.main(): it turns a closed stdout into exit code 1, which means a bug of this package.
        with cli.make_context("robust", arguments) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        from robustbench_local.cli.terminal import show_error

        show_error(error)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("robust: interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # The reader of stdout has closed it. The command's own exit code is kept.
        code = context.obj if context is not None else 0
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, ImportError) as error:
        if isinstance(error, ImportError) and not _is_out_of_file_handles():
            raise
        with contextlib.suppress(OSError):
            click.echo(f"robust: reading or writing failed: {error} [input-output-error]", err=True)
        code = 2
    return code if isinstance(code, int) else 0
