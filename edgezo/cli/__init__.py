"""The command line. Each command has a file of its own, and is imported when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from edgezo_runtime.errors import EdgezoError

COMMANDS = {
    "demo": "Tune a small language model to an assistant's intents, and show the gain.",
    "export": "Make a bundle of a Hugging Face checkpoint or an ONNX file.",
    "plan": "Predict memory and time of every method, and pick one.",
    "train": "Tune a bundle on rows of JSONL.",
    "eval": "Measure a bundle or a run on rows of JSONL.",
    "generate": "Continue a prompt with a bundle or a run.",
    "resume": "Continue a run that was stopped.",
    "replay": "Rebuild tuned weights from a run's journal, bit for bit.",
    "save": "Write a run's weights for other programs.",
    "compare": "Tune by several methods on several tasks, and compare.",
    "search": "Find a learning rate by short runs.",
    "info": "Show what a bundle, a run or an ONNX file holds.",
    "methods": "List the tuning methods.",
    "bench": "Measure a tuning step against plain inference.",
    "report": "Write a run's report.html again.",
}


class _Commands(click.Group):
    """Loads a command's module when it is asked for: `edgezo --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"edgezo.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgezo")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Fine-tune a model where it runs: forward passes only, in the memory of inference."""
    ctx.obj = debug


def main() -> None:
    """Runs the command line; exit status 2 for bad input, 1 for failure, 130 for Ctrl-C."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click >= 8.2
            error.show()
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(error, error.exit_code, error.format_message() + hint)
    except EdgezoError as error:
        _fail(error, error.exit_status)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(error, 1, f"{name}{error.strerror or error}")
    except MemoryError as error:
        _fail(error, 1, "there is not enough memory: use a smaller batch or a smaller model")
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        _fail(error, 1, f"{what}; this is a bug in edgezo, --debug shows where")


def _fail(error: BaseException, status: int, sentence: str | None = None) -> None:
    if "--debug" in sys.argv:
        raise error
    click.echo("error: " + " ".join((sentence or str(error)).split()), err=True)
    sys.exit(status)
