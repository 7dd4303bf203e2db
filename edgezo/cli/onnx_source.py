"""What `edgezo export` does with an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgezo_runtime.errors import EdgezoError, InputError

if TYPE_CHECKING:
    from edgezo_export.onnx_file import Exported


def export_onnx(
    source: Path, out: Path, output: str | None, loss: str | None, labels: str | None
) -> Exported:
    """Exports the ONNX file `source`; raises EdgezoError if the exporter is not installed."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out, or remove it")
    try:
        from edgezo_export.onnx_file import onnx_to_bundle
    except ImportError as error:
        raise needs_onnx(error) from error
    names = None if labels is None else _names(labels)
    return onnx_to_bundle(source, out, output=output, loss=loss or "cross-entropy", labels=names)


def needs_onnx(error: ImportError) -> EdgezoError:
    """Returns the error that says what to install."""
    return EdgezoError(f"reading an ONNX file needs {error.name}: run `pip install 'edgezo[onnx]'`")


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
