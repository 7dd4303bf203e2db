"""`edgezo demo`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from edgezo.cli.common import as_json, print_json, subcommand, threads_option
from edgezo.cli.export import export_checkpoint
from edgezo.cli.progress import RunProgress
from edgezo.demo import recipe
from edgezo.demo.default_model import cache_folder, default_bundle
from edgezo.demo.story import Story, tell
from edgezo.report import Comparison, write_report
from edgezo_runtime.bundle import is_bundle
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.files import sha256


@subcommand("edgezo demo --steps 100 --out runs/demo")
@click.option("--model", type=click.Path(path_type=Path), help="A bundle or Hugging Face folder.")
@click.option("--steps", type=click.IntRange(1), help=f"[default: {recipe.STEPS}]")
@click.option("--out", type=click.Path(path_type=Path), help="[default: edgezo-demo]")
@threads_option
@as_json
def command(
    model: Path | None, steps: int | None, out: Path | None, threads: int | None, as_json: bool
) -> None:
    """Tune SmolLM2-135M to seven intents of an assistant, on the CPU, in a few minutes.

    Fetches the model once (93 MB) and keeps it in edgezo's cache folder; nothing leaves the
    machine.
    """

    def say(line: str) -> None:
        click.echo(line, err=True)

    bundle = _bundle_of(model, say)
    out = out or _free_folder(Path("edgezo-demo"))
    with RunProgress(steps or recipe.STEPS) as progress:
        story = tell(bundle, out, steps, threads, progress, say)
    if story is None:
        click.echo(f"stopped; `edgezo resume {out}` goes on")
        return
    report = write_report(story.run, _comparison(story))
    _print_table(story)
    if report:
        click.echo(f"\nThe run is in {story.run.path}, its report in {report}")
    if as_json:
        print_json(story.to_json())


def _bundle_of(model: Path | None, say: Callable[[str], None]) -> Path:
    """Returns the bundle to tune, made first where it has to be."""
    if model is None:
        return default_bundle(_convert_gguf, say)
    if is_bundle(model):
        return model
    config = model / "config.json"
    if not config.is_file():
        raise EdgezoError(f"{model} is neither a bundle nor a Hugging Face folder (no config.json)")
    bundle = cache_folder() / f"{model.resolve().name}-{sha256(config)[:12]}.edgezo"
    if not is_bundle(bundle):
        say(f"exporting {model} to {bundle}")
        cache_folder().mkdir(parents=True, exist_ok=True)
        export_checkpoint(model, bundle)
    return bundle


def _convert_gguf(gguf: Path, bundle: Path) -> None:
    """Converts in a process of its own, so that its memory is not counted as the tuning's."""
    try:
        from edgezo_export.gguf_checkpoint import gguf_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"reading the model needs {error.name}: run `pip install 'edgezo[demo]'`"
        ) from error
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(gguf_to_bundle, gguf, bundle).result()


def _free_folder(path: Path) -> Path:
    """Returns `path`, or the next of path-2, path-3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _table_rows(story: Story) -> list[tuple[str, str, str]]:
    fields = story.to_json()
    return [
        ("held-out accuracy", f"{story.before:.1%}", f"{story.after:.1%}"),
        (
            "peak memory",
            f"{fields['inference_peak_rss_mb']:.0f} MB (plain inference)",
            f"{fields['peak_rss_mb']:.0f} MB (tuning), {story.memory_ratio:.2f} x",
        ),
        ("time", "", f"{story.seconds:.0f} s"),
        ("journal", "", f"{fields['journal_bytes']} bytes rebuild the tuned model"),
    ]


def _comparison(story: Story) -> Comparison:
    examples = [
        {"utterance": p.text, "before": p.before, "after": p.after, "truth": p.truth}
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
