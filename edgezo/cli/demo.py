"""`edgezo demo`."""

from __future__ import annotations

from pathlib import Path

import click

from edgezo.cli.common import as_json, device_option, print_json, subcommand, threads_option
from edgezo.cli.models import bundle_of, default_model
from edgezo.cli.progress import RunProgress
from edgezo.demo import recipe
from edgezo.demo.story import Story, tell
from edgezo.report import Comparison, write_report
from edgezo.run_folder import RunFolder
from edgezo_runtime.devices import open_device
from edgezo_runtime.start import FILE


@subcommand("edgezo demo --steps 100 --out runs/demo")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle or Hugging Face folder.")
@click.option(
    "--steps", type=click.IntRange(1), help=f"Number of steps.  [default: {recipe.STEPS}]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the run.  [default: edgezo-demo]"
)
@device_option
@threads_option
@as_json
def command(
    model: Path | None,
    steps: int | None,
    out: Path | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Tune SmolLM2-135M to seven intents of an assistant, on the CPU in a few minutes.

    Fetches the model once (93 MB) and keeps it in edgezo's cache folder; nothing leaves the
    machine.
    """

    def say(line: str) -> None:
        click.echo(line, err=True)

    device = device or "cpu"
    out = out or _free_folder(Path("edgezo-demo"))
    # What is wrong with either is told before a model is fetched.
    RunFolder(out).check_new()
    open_device(device, threads)
    bundle = bundle_of(model, say) if model else default_model(say)
    with RunProgress(steps or recipe.STEPS) as progress:
        story = tell(bundle, out, steps, device, threads, progress, say)
    if story is None:
        click.echo(f"stopped; `edgezo resume {out}` goes on")
        click.get_current_context().exit(130)
    report = write_report(story.run, _comparison(story))
    _print_table(story)
    if report:
        click.echo(f"\nThe run is in {story.run.path}, its report in {report}")
    if as_json:
        print_json(story.to_json())


def _free_folder(path: Path) -> Path:
    """Returns `path`, or the next of path-2, path-3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _table_rows(story: Story) -> list[tuple[str, str, str]]:
    return [
        ("held-out accuracy", f"{story.before:.1%}", f"{story.after:.1%}"),
        (
            "peak memory" if story.memory == "rss" else "memory of the card",
            f"{story.inference_peak / 1e6:.0f} MB (plain inference)",
            f"{story.peak / 1e6:.0f} MB (tuning), {story.memory_ratio:.2f} x",
        ),
        ("time", "", f"{story.seconds:.0f} s"),
        ("journal", "", f"{_rebuilding(story)} rebuild the tuned model"),
    ]


def _comparison(story: Story) -> Comparison:
    examples = [
        {"utterance": p.text, "label": p.truth, "before": p.before, "after": p.after}
        for p in story.predictions
    ]
    return Comparison(_table_rows(story), examples)


def _print_table(story: Story) -> None:
    click.echo(f"\n{'':18} {'before':30} after   ({story.examples} held-out utterances)")
    for name, before, after in _table_rows(story):
        click.echo(f"{name:18} {before:30} {after}")
    click.echo()
    for prediction in story.predictions:
        mark = "right" if prediction.after == prediction.truth else "WRONG"
        click.echo(f"  {prediction.text}")
        click.echo(f"    {prediction.before} -> {prediction.after} ({mark})")


def _rebuilding(story: Story) -> str:
    """Returns the size of what a replay needs besides the base."""
    size = f"{story.run.journal.stat().st_size} bytes"
    start = story.run.path / FILE
    return (
        f"{size}, {start.stat().st_size / 1e3:.0f} kB of fitted rows," if start.exists() else size
    )
