"""Regenerates the shipped graphs from their configurations: `python -m edgezo_export.make_graphs`.

The same versions of torch, transformers and onnxscript give the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from transformers import AutoConfig, PreTrainedModel

from edgezo_export.bundle_graph import save_graph
from edgezo_export.generate_graph import export_generate_graph
from edgezo_export.lean.make import save_lean
from edgezo_export.model_shell import shell
from edgezo_export.shipped_graphs import read_config, shipped, shipped_folder
from edgezo_export.text_graph import export_text_graph
from edgezo_runtime.bundle import GENERATE, GRAPH, LEAN


def described_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Returns the model that a `config.json` describes, without memory for its weights."""
    return shell(AutoConfig.for_model(**config))


def export_config(config: Mapping[str, Any]) -> ir.Model:
    """Returns the text graph of the model that a `config.json` describes."""
    return export_text_graph(described_model(config))


def make_graphs(
    folder: Path, out: Path, names: Sequence[str] = (GRAPH, GENERATE, LEAN)
) -> list[Path]:
    """Exports the graphs of the `config.json` in `folder` to the folder `out`; returns them."""
    model = described_model(read_config(folder))
    save_graph(export_text_graph(model), out / GRAPH)
    if GENERATE in names:
        save_graph(export_generate_graph(model), out / GENERATE)
    save_lean(out)
    return [out / name for name in (GRAPH, GENERATE, LEAN) if (out / name).is_file()]


def main(names: list[str]) -> None:
    """Regenerates the graphs `names`, or all of them."""
    for name in names or shipped():
        folder = shipped_folder(name)
        for path in make_graphs(folder, folder):
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
