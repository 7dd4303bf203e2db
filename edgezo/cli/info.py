"""`edgezo info`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from edgezo.cli.common import as_json, megabytes, print_json, subcommand
from edgezo.run_folder import RunFolder, is_run
from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.journal import read


@subcommand("edgezo info smollm2.edgezo --parameters")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--parameters", is_flag=True, help="List every parameter.")
@as_json
def command(path: Path, parameters: bool, as_json: bool) -> None:
    """Show what PATH, a bundle or a run, holds."""
    fields = _run(RunFolder(path)) if is_run(path) else _bundle(path, parameters)
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        if isinstance(value, list):
            for item in value:
                click.echo("  " + "  ".join(str(part) for part in item.values()))
        elif isinstance(value, dict):
            click.echo(f"{name}:")
            for key, inner in value.items():
                click.echo(f"  {key}: {inner}")
        else:
            click.echo(f"{name}: {value}")


def _bundle(path: Path, every: bool) -> dict[str, Any]:
    manifest = open_bundle(path).manifest
    sizes: Counter[str] = Counter()
    for parameter in manifest.parameters:
        sizes[parameter.kind] += parameter.size
    total = sum(_nbytes(parameter) for parameter in manifest.parameters)
    fields: dict[str, Any] = {
        "bundle": str(path),
        "parameters": sum(sizes.values()),
        "by_kind": dict(sizes),
        "weights_mb": megabytes(total),
        "context_length": manifest.context_length,
        "task": dict(manifest.task) or None,
        "versions": dict(manifest.versions),
    }
    if every:
        fields["list"] = [
            {"name": p.name, "shape": list(p.shape), "dtype": p.dtype, "kind": p.kind}
            for p in manifest.parameters
        ]
    return fields


def _run(run: RunFolder) -> dict[str, Any]:
    journal = read(run.journal)
    settings = run.read_settings()
    evaluations = [line for line in run.read_metrics() if "eval" in line]
    return {
        "run": str(run.path),
        "bundle": settings.get("bundle"),
        "method": journal.header["method"],
        "steps_done": len(journal.records),
        "steps": settings.get("steps"),
        "skipped": sum(record.skipped for record in journal.records),
        "finished": run.weights.exists(),
        "journal_bytes": run.journal.stat().st_size,
        "torn_bytes": journal.torn,
        "last_eval": evaluations[-1]["eval"] if evaluations else None,
        "header": journal.header,
    }


def _nbytes(parameter: Parameter) -> int:
    return parameter.size * dtypes.named(parameter.dtype).storage.itemsize
