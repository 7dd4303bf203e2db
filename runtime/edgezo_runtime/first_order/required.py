"""The graphs of derivatives that a bundle may have, and what says that one is missing."""

from __future__ import annotations

from edgezo_runtime import dtypes
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import GRADIENTS, QUANTIZED, TANGENTS, Bundle
from edgezo_runtime.devices import Device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Graph

_KINDS = {GRADIENTS: "gradient", TANGENTS: "tangent"}


def check_graph(bundle: Bundle, device: Device, name: str) -> None:
    """Raises InputError if a bundle lacks the graph `name` or `device` cannot run it.

    The message says how to make one, or why there can be none.
    """
    kind = _KINDS[name]
    if device.streams:
        raise InputError(
            f"{kind} graphs need all weights in one place, and those of {device.name} pass through "
            "the card: use device cuda or cpu"
        )
    if name not in bundle.manifest.files:
        for parameter in bundle.manifest.parameters:
            if parameter.kind == QUANTIZED:
                raise InputError(
                    f"{parameter.name} is quantised, so its model has no {kind}s: tune it with "
                    "qzo, mezo or es, or tune the bundle that was quantised"
                )
            if parameter.dtype != dtypes.FLOAT32.name:
                raise InputError(
                    f"{parameter.name} is {parameter.dtype}, and {kind}s are those of float32 "
                    "models: export it as float32, or tune it with mezo"
                )
        raise InputError(
            f"{bundle.folder} has no {kind} graph, which this method needs: make a bundle that "
            f"has one with `edgezo export {bundle.folder} --{kind}s --out NEW`"
        )


def read_graph(bundle: Bundle, device: Device, name: str) -> Graph:
    """Returns the graph `name` of a bundle; raises InputError if it has none, or a damaged one."""
    check_graph(bundle, device, name)
    try:
        return Graph(bundle.read_graph(name))
    except (ValueError, IndexError) as error:
        raise InputError(f"{bundle.folder} has a damaged {_KINDS[name]} graph: {error}") from error


def check_differentiable(batch: BaseBatch) -> None:
    """Raises InputError if the loss of `batch` does not follow from one forward pass."""
    if type(batch).loss is not BaseBatch.loss:
        raise InputError(
            f"{type(batch).__name__} is judged by more than one forward pass, which has no "
            "gradient: tune with a method that needs none, such as mezo"
        )
