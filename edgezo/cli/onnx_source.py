"""What `edgezo export` does with an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezo.cli.extras import to_install
from edgezo_runtime.errors import EdgezoError, InputError

GENAI_CONFIG = "genai_config.json"


def export_onnx(
    source: Path,
    out: Path,
    output: str | None,
    loss: str | None,
    labels: str | None,
    task: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Exports the ONNX file `source` and returns what to tell of it.

    Raises:
        InputError: it cannot be tuned, or an option is not for it.
        EdgezoError: the exporter is not installed.
    """
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    if (source.parent / GENAI_CONFIG).is_file():
        if output or loss or labels:
            raise InputError(
                f"{source} generates text, as the {GENAI_CONFIG} beside it says: leave --output, "
                "--loss and --labels out"
            )
        return {"difference": _export_genai(source, out, task)}
    if task is not None:
        raise InputError(f"--task is for models of text, and {source} takes arrays: leave it out")
    try:
        from edgezo_export.onnx_file import onnx_to_bundle
    except ImportError as error:
        raise needs_onnx(error) from error
    names = None if labels is None else _names(labels)
    exported = onnx_to_bundle(
        source, out, output=output, loss=loss or "cross-entropy", labels=names
    )
    trained = sum(weight.trainable for weight in exported.weights)
    constant = len(exported.weights) - trained
    return {"trained": trained, "constant": constant, "difference": exported.difference}


def _export_genai(source: Path, out: Path, task: Mapping[str, Any] | None) -> float:
    try:
        from edgezo_export.genai_file import genai_to_bundle
    except ImportError as error:
        raise EdgezoError(
            f"reading what the model builder of onnxruntime-genai writes needs {error.name}: run "
            f"`{to_install('export')}`"
        ) from error
    return genai_to_bundle(source, out, task)


def needs_onnx(error: ImportError) -> EdgezoError:
    """Returns the error that says what to install."""
    return EdgezoError(f"reading an ONNX file needs {error.name}: run `{to_install('onnx')}`")


def _names(labels: str) -> list[str]:
    """Returns the names in a file, one a line, or those between commas."""
    path = Path(labels)
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the labels in {path}: {error}") from error
        return [line.strip() for line in lines if line.strip()]
    return [name.strip() for name in labels.split(",")]
