"""`edgezo export`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgezo.cli.adapters import adapter_options, add_adapter
from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.settings import adapter_request
from edgezo_runtime.bundle import is_bundle, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.select import ADAPTERS, FULL


@subcommand("edgezo export ./my-checkpoint --out my-model.edgezo")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle.")
@click.option("--tune", help=f"Add an adapter to a bundle: {', '.join(ADAPTERS)}.")
@adapter_options
@as_json
def command(source: Path, out: Path, tune: str | None, as_json: bool, **adapter: Any) -> None:
    """Make a bundle of SOURCE, a folder with a Hugging Face causal language model.

    Needs `pip install 'edgezo[export]'`. The bundle is checked against transformers before it
    appears. With --tune, SOURCE is a bundle, and what is made is one that has that adapter, to be
    tuned where the packages that edit graphs are not installed.
    """
    started = time.perf_counter()
    if is_bundle(source) or tune is not None:
        export_adapted(source, out, tune, adapter)
    else:
        export_checkpoint(source, out)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print_json({"out": str(out), "seconds": seconds})
    else:
        click.echo(f"wrote {out} in {seconds} s")


def export_adapted(source: Path, out: Path, tune: str | None, given: Mapping[str, Any]) -> None:
    """Adds the adapter that `tune` names and `given` describes to the bundle `source`."""
    values = {name: value for name, value in given.items() if value is not None}
    if "target" in values:
        values["target"] = tuple(word.strip() for word in values["target"].split(","))
    request = adapter_request(tune or FULL, values)
    if request is None:
        raise InputError(
            f"{source} is a bundle already: give the adapter to add, one of {', '.join(ADAPTERS)}, "
            "with --tune"
        )
    adapted = add_adapter(open_bundle(source), request)
    from edgezo_export.adapters.base import write_adapted

    write_adapted(adapted, out)


def export_checkpoint(source: Path, out: Path) -> None:
    """Exports `source`; raises EdgezoError if the exporter is not installed."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    try:
        from edgezo_export.huggingface import checkpoint_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"exporting a checkpoint needs {error.name}: run `pip install 'edgezo[export]'`"
        ) from error
    checkpoint_to_bundle(source, out)
