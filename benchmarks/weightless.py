"""Graphs and manifests of large OPT models in float16, without weights, for a card to fill.

python benchmarks/weightless.py opt-1.3b --out opt1.3b.graphs

The folder holds `graph.onnx`, `lean.onnx` and `edgezo.json`, but no weights: it is no bundle yet.
Neither this nor what reads the manifest needs memory for the model.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from transformers import OPTConfig

from edgezo_export.bundle_graph import save_graph
from edgezo_export.bundle_writer import new_folder
from edgezo_export.lean.make import save_lean
from edgezo_export.model_shell import shell
from edgezo_export.signature import read_signature
from edgezo_export.text_graph import export_text_graph
from edgezo_runtime.bundle import GRAPH, LEAN, Manifest, write_manifest
from edgezo_runtime.files import sha256

#: Layers, hidden size and heads of the published models.
SIZES = {"opt-1.3b": (24, 2048, 32), "opt-30b": (48, 7168, 56)}
CONTEXT = 2048  # tokens; OPT's table of positions has two rows more


@click.command()
@click.argument("name", type=click.Choice(sorted(SIZES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
def main(name: str, out: Path) -> None:
    """Write the graphs and the manifest of NAME."""
    with new_folder(out) as folder:
        write_weightless(folder, *SIZES[name])
    for path in sorted(out.iterdir()):
        click.echo(f"{path}: {path.stat().st_size} bytes")


def write_weightless(
    folder: Path, layers: int, hidden: int, heads: int, vocabulary: int = 50272
) -> Manifest:
    """Writes graphs and manifest of an OPT model in float16 into `folder`.

    Args:
        folder: exists.
        layers: number of them.
        hidden: features of a token; the layers between have four times as many.
        heads: of attention.
        vocabulary: number of tokens.
    """
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        max_position_embeddings=CONTEXT,
    )
    save_graph(export_text_graph(shell(config, dtype=torch.float16)), folder / GRAPH)
    save_lean(folder)
    signature = read_signature(folder / GRAPH)
    manifest = Manifest(
        signature.parameters,
        signature.inputs,
        signature.outputs,
        CONTEXT,
        files={name: sha256(folder / name) for name in (GRAPH, LEAN)},
    )
    write_manifest(folder, manifest)
    return manifest


if __name__ == "__main__":
    main()
