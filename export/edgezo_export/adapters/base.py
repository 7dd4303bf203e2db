"""Puts an adapter into a bundle's graphs; no torch is needed, and no weight is read."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgezo_export.adapters.lora import add_lora
from edgezo_export.adapters.prefix import add_prefix
from edgezo_export.adapters.prompt import add_prompt
from edgezo_export.bundle_graph import bundle_graph
from edgezo_export.bundle_writer import link_or_copy, new_folder
from edgezo_export.gradients.bundle import DERIVED, derived_again
from edgezo_export.lean.make import lean_graph
from edgezo_export.signature import PARAMETERS_KEY, parameters_text
from edgezo_runtime.bundle import (
    GENERATE,
    GRAPH,
    LEAN,
    Bundle,
    Parameter,
    open_bundle,
    write_manifest,
)
from edgezo_runtime.errors import InputError

_KINDS: Mapping[str, Callable[..., tuple[list[Parameter], dict[str, Any]]]] = {
    "lora": add_lora,
    "prefix": add_prefix,
    "prompt": add_prompt,
}


def adapt(bundle: Bundle, adapter: Mapping[str, Any]) -> Bundle:
    """Returns `bundle` with an adapter in its graphs, in memory.

    The same bundle and settings give the same graph and the same manifest.

    Args:
        bundle: one without an adapter.
        adapter: its ``kind``, and the settings of it that are not to be the defaults.

    Raises:
        InputError: the bundle has an adapter, or its graph nothing to put this one at.
    """
    if bundle.manifest.adapter:
        raise InputError(
            f"{bundle.folder} has a {bundle.manifest.adapter['kind']} adapter already: "
            "give the bundle that it was made from"
        )
    kind, settings = adapter["kind"], {k: v for k, v in adapter.items() if k != "kind"}
    add = _KINDS[kind]
    unknown = settings.keys() - inspect.signature(add).parameters.keys()
    if unknown:
        raise InputError(f"{min(unknown)} is no setting of a {kind} adapter: leave it out")
    added: list[Parameter] = []
    graphs: dict[str, bytes] = {}
    for name in (GRAPH, GENERATE) if bundle.generates else (GRAPH,):
        model = bundle_graph(bundle.read_graph(name))
        added, settings = add(model, bundle.manifest.parameters, **settings)
        model.metadata_props[PARAMETERS_KEY] = parameters_text(
            (p.name, p.kind, p.aliases) for p in (*bundle.manifest.parameters, *added)
        )
        graphs[name] = ir.to_proto(model).SerializeToString(deterministic=True)
    files = dict(bundle.manifest.files)
    if files.pop(LEAN, None) and (lean := lean_graph(graphs[GRAPH])):
        graphs[LEAN] = lean
    digests = {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}
    length = bundle.manifest.context_length
    manifest = dataclasses.replace(
        bundle.manifest,
        parameters=(*bundle.manifest.parameters, *added),
        files={**files, **digests},
        context_length=None if length is None else length - _taken(kind, settings),
        adapter={"kind": kind, **settings},
    )
    for name in [name for name in DERIVED if name in manifest.files]:
        graphs[name] = derived_again(name, bundle, graphs[GRAPH], manifest)
        digest = hashlib.sha256(graphs[name]).hexdigest()
        manifest = dataclasses.replace(manifest, files={**manifest.files, name: digest})
    return Bundle(bundle.folder, manifest, graphs)


def new_parameters(graph: bytes, parameters: Sequence[Parameter], kind: str) -> list[Parameter]:
    """Returns what an adapter of `kind`, with its default settings, adds to a weight-free graph.

    Args:
        graph: the bytes of an ONNX file.
        parameters: the graph's.
        kind: ``"lora"``, ``"prefix"`` or ``"prompt"``.

    Raises:
        InputError: the graph has nothing to put it at.
    """
    added, _ = _KINDS[kind](bundle_graph(graph), parameters)
    return added


def _taken(kind: str, settings: Mapping[str, Any]) -> int:
    """Returns how many of the model's positions the adapter takes."""
    return settings["virtual_tokens"] if kind == "prompt" else 0


def write_adapted(bundle: Bundle, out: Path) -> None:
    """Writes an adapted bundle to the new folder `out`; its weights are linked where they can be.

    Raises:
        InputError: `out` exists.
        EdgezoError: it cannot be written.
    """
    with new_folder(out) as folder:
        for name in bundle.manifest.files:
            if name in bundle.adapted:
                (folder / name).write_bytes(bundle.adapted[name])
            else:
                link_or_copy(bundle.folder / name, folder / name)
        write_manifest(folder, bundle.manifest)
    open_bundle(out)
