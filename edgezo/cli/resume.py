"""`edgezo resume`."""

from __future__ import annotations

from pathlib import Path

import click

from edgezo.cli.adapters import add_adapter
from edgezo.cli.common import as_json, subcommand
from edgezo.cli.progress import RunProgress
from edgezo.cli.train import finish
from edgezo.run_folder import RunFolder
from edgezo.train import resume


@subcommand("edgezo resume runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@as_json
def command(run: Path, as_json: bool) -> None:
    """Continue RUN to its last step, with the same bytes as if it had never stopped.

    The weights are rebuilt from the newest snapshot, or the base, and the journal.
    """
    settings = RunFolder.open(run).read_settings()
    with RunProgress(int(settings.get("steps") or 0)) as progress:
        result = resume(run, progress, add_adapter)
    finish(result, as_json)
