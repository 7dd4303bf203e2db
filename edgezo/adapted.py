"""Opening a bundle together with the adapter that a run tunes or has tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.errors import InputError

#: Puts an adapter into a bundle's graph in memory; the exporter has one.
AddAdapter = Callable[[Bundle, Mapping[str, Any]], Bundle]


def open_adapted(
    folder: Path | str, adapter: Mapping[str, Any] | None, add: AddAdapter | None = None
) -> Bundle:
    """Opens the bundle in `folder`, with an adapter where one is asked for.

    Args:
        folder: a bundle that has that adapter, or one that has none.
        adapter: its kind and some or all of its settings; None: take the bundle as it is.
        add: puts the adapter into a bundle that has none.

    Raises:
        InputError: the bundle has another adapter, or none and there is no `add`.
    """
    bundle = open_bundle(folder)
    if adapter is None:
        return bundle
    if not bundle.manifest.adapter:
        if add is None:
            raise InputError(
                f"{folder} has no {adapter['kind']} adapter: make a bundle that has one with "
                f"`edgezo export {folder} --tune {adapter['kind']} --out NEW`"
            )
        return add(bundle, adapter)
    for name, value in adapter.items():
        found = bundle.manifest.adapter.get(name)
        if found != (list(value) if isinstance(value, tuple) else value):
            raise InputError(f"the adapter of {folder} has {name} {found!r}, not {value!r}")
    return bundle
