"""`robust`: each command is imported when it is asked for, so that help answers in a blink."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys

import click

from robustbench_local import __version__
from robustbench_local.errors import UserError, nearest

COMMANDS = {
    "attack": "Attack a classifier and report its clean and robust accuracy.",
    "compare": "Compare result files sample by sample.",
    "defend": "Train a more robust classifier.",
    "doctor": "Check that a model and its data can be evaluated together.",
    "gate": "Pass or fail result files by their limits: for CI.",
    "train": "Train a classifier on clean images, from scratch or from published weights.",
    "list": "List models, datasets, attacks, defenses or configs.",
    "predict": "Say what a classifier sees in image files.",
}


class Commands(click.Group):
    """Names and one-line helps without imports; the command's own module behind each name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module = "defend" if name == "train" else name
        return getattr(importlib.import_module(f"robustbench_local.cli.{module}"), f"{name}_command")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"There is no command {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robust")
def cli() -> None:
    """How well does an image classifier stand up to an adversary?

    \b
    robust attack                        the bundled digits classifier, in seconds
    robust attack MODEL --data cifar10   a classifier of your own
    robust gate runs/x.json --min-robust 0.40
    """


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The entry point: what a user can cause ends in one sentence and exit code 2."""
    context = None
    # A job that is cancelled, or a terminal that is closed, ends like ctrl-C: what was found is kept.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(getattr(signal, name), _interrupt)
    try:
        # Not cli.main(), which makes exit code 1 of a reader that leaves early: that is no bug of ours.
        with cli.make_context("robust", sys.argv[1:]) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        from robustbench_local.io.safe_read import printable

        click.echo("robust: " + "\n".join(map(printable, str(error).splitlines())), err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("robust: interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # What was decided stands although nobody read it to the end.
        code = context.obj if context is not None else 0
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        with contextlib.suppress(OSError):
            click.echo(f"robust: reading or writing failed: {error}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
