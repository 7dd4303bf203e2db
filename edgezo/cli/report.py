"""`edgezo report`."""

from __future__ import annotations

from pathlib import Path

import click

from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.extras import to_install
from edgezo.report import write_report
from edgezo.run_folder import RunFolder
from edgezo_runtime.errors import EdgezoError


@subcommand("edgezo report runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@as_json
def command(run: Path, as_json: bool) -> None:
    """Write RUN's report.html again from its metrics: one page that needs no other file."""
    path = write_report(RunFolder.open(run))
    if path is None:
        raise EdgezoError(f"a report needs matplotlib: run `{to_install('demo')}`")
    if as_json:
        print_json({"report": str(path)})
    else:
        click.echo(f"wrote {path}")
