"""`edgezo info`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgezo.cli.common import as_json, print_json, subcommand
from edgezo.cli.onnx_info import describe_onnx
from edgezo.cli.tuning_memory import WAYS, trained_by, tuning_memory
from edgezo.run_folder import RunFolder, is_run
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.journal import read
from edgezo_runtime.select import resolve, select


@subcommand("edgezo info smollm2.edgezo --parameters")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--parameters", is_flag=True, help="List every parameter.")
@click.option("--tune", help="Also reckon the memory to tune by these patterns of names.")
@as_json
def command(path: Path, parameters: bool, tune: str | None, as_json: bool) -> None:
    """Show what PATH, a bundle, a run or an .onnx file, holds.

    Of an .onnx file it says which weights could be tuned, and why the other constants could not.
    run_mb and tune_mb are megabytes that weights take to run, and to tune by each --tune; what a
    batch takes comes on top.
    """
    if is_run(path):
        fields = _run(RunFolder(path))
    elif path.suffix == ".onnx":
        fields = describe_onnx(path, parameters, tune)
    else:
        fields = _bundle(path, parameters, tune)
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        if isinstance(value, list):
            for item in value:
                click.echo("  " + "  ".join(str(part) for part in item.values()))
        elif isinstance(value, dict) and value:
            click.echo(f"{name}:")
            for key, inner in value.items():
                click.echo(f"  {key}: {inner}")
        else:
            click.echo(f"{name}: {'none' if value in (None, {}) else value}")


def _bundle(path: Path, every: bool, tune: str | None) -> dict[str, Any]:
    bundle = open_bundle(path)
    manifest, graph = bundle.manifest, bundle.read_graph()
    own = manifest.adapter.get("kind")

    def tuned(way: str) -> Sequence[Parameter]:
        if own is None:
            return trained_by(way, graph, manifest.parameters)
        return select(manifest.parameters, resolve(manifest, way))

    sizes: Counter[str] = Counter()
    for parameter in manifest.parameters:
        sizes[parameter.kind] += parameter.size
    fields: dict[str, Any] = {
        "bundle": str(path),
        "parameters": sum(sizes.values()),
        "by_kind": dict(sizes),
        "by_dtype": dict(Counter(parameter.dtype for parameter in manifest.parameters)),
        **tuning_memory(manifest.parameters, len(graph), [own] if own else WAYS, tuned, tune),
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
