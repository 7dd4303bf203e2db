"""Adapters on the command line: what describes one, and the exporter that puts it into a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from edgezo.cli.extras import to_install
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.errors import EdgezoError


def adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that describe an adapter."""
    for option in (
        click.option("--virtual-tokens", type=int, help="Length of a prefix (5) or a prompt (10)."),
        click.option("--rslora/--no-rslora", default=None, help="Scale by alpha / sqrt(rank)."),
        click.option("--target", help="LoRA's layers, or all-linear.  [default: q_proj,v_proj]"),
        click.option("--alpha", type=float, help="LoRA's scale times its rank.  [default: 16]"),
        click.option("--rank", type=int, help="LoRA's rank.  [default: 8]"),
    ):
        command = option(command)
    return command


def add_adapter(bundle: Bundle, adapter: Mapping[str, Any]) -> Bundle:
    """Puts an adapter into the graph of `bundle`, in memory.

    Raises:
        InputError: the graph has nothing to put it at.
        EdgezoError: the packages that edit graphs are not installed.
    """
    try:
        from edgezo_export.adapters.base import adapt
    except ImportError as error:
        raise EdgezoError(
            f"adding an adapter to a graph needs {error.name}: run `{to_install('onnx')}`, "
            f"or tune a bundle that has one, from `edgezo export {bundle.folder} --tune "
            f"{adapter['kind']} --out NEW` on another machine"
        ) from error
    return adapt(bundle, adapter)
