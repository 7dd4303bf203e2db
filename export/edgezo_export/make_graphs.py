"""Regenerates the shipped graphs from their configurations: `python -m edgezo_export.make_graphs`.

The same versions of torch, transformers and onnxscript give the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from transformers import AutoConfig

from edgezo_export.model_shell import shell
from edgezo_export.shipped_graphs import read_config, shipped, shipped_folder
from edgezo_export.text_graph import export_text_graph, save_graph
from edgezo_runtime.bundle import GRAPH


def export_config(config: Mapping[str, Any]) -> ir.Model:
    """Returns the graph of the model that a `config.json` describes."""
    return export_text_graph(shell(AutoConfig.for_model(**config)))


def make_graph(folder: Path, out: Path) -> Path:
    """Exports the graph of the `config.json` in `folder` to the file `out` and returns it."""
    save_graph(export_config(read_config(folder)), out)
    return out


def main(names: list[str]) -> None:
    """Regenerates the graphs `names`, or all of them."""
    for name in names or shipped():
        folder = shipped_folder(name)
        path = make_graph(folder, folder / GRAPH)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
