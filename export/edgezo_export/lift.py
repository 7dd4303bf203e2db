"""Turns a freshly exported graph with weights inside into one whose weights are inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from torch import nn

from edgezo_export.gather_early import GatherEarly
from edgezo_export.keep_rows import KeepRows
from edgezo_export.signature import PARAMETERS_KEY, parameters_text
from edgezo_export.simplify import simplify
from edgezo_runtime.errors import InputError

#: Where the exporter says what an initializer is: PARAMETER, BUFFER, ...
KIND_KEY = "pkg.torch.export.graph_signature.InputSpec.kind"


@dataclass(frozen=True)
class ParameterNames:
    """A model's parameters by checkpoint key.

    Attributes:
        kinds: kind of each parameter, in module order, tied ones once under their first name.
        source: checkpoint key of each initializer's name, tied names included.
        aliases: the other keys of each tied parameter.
    """

    kinds: Mapping[str, str]
    source: Mapping[str, str]
    aliases: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module, prefix: str = "") -> ParameterNames:
        """Reads the names off `model`, which the exporter saw under `prefix`."""
        first: dict[int, str] = {}
        kinds: dict[str, str] = {}
        source: dict[str, str] = {}
        aliases: dict[str, tuple[str, ...]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            key = first.setdefault(id(parameter), name)
            source[prefix + name] = key
            if key == name:
                owner, _, leaf = name.rpartition(".")
                kinds[name] = _kind(model.get_submodule(owner), leaf, parameter.dim())
            else:
                aliases[key] = (*aliases.get(key, ()), name)
        return cls(kinds, source, aliases)


def _kind(owner: nn.Module, leaf: str, dimensions: int) -> str:
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if dimensions > 1:
        return "linear"
    return "bias" if leaf.endswith("bias") else "norm"


class LiftParameters(ir.passes.InPlacePass):
    """Makes each parameter a graph input named by its checkpoint key; buffers stay inside."""

    def __init__(self, names: ParameterNames) -> None:
        super().__init__()
        self.names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass; raises InputError if the graph does not read one of the parameters."""
        graph = model.graph
        lifted: dict[str, ir.Value] = {}
        for name, value in list(graph.initializers.items()):
            if "PARAMETER" not in value.metadata_props.get(KIND_KEY, ""):
                continue
            key = self.names.source[name]
            del graph.initializers[name]
            if key in lifted:
                value.replace_all_uses_with(lifted[key])
                continue
            value.const_value = None
            value.name = key
            lifted[key] = value
        unused = [key for key in self.names.kinds if key not in lifted or not lifted[key].uses()]
        if unused:
            raise InputError(f"the exported graph does not use parameter {unused[0]!r}")
        graph.inputs.extend(lifted[key] for key in self.names.kinds)
        return ir.passes.PassResult(model, modified=True)


class DivideBySqrt(ir.passes.InPlacePass):
    """Writes `x * (1 / sqrt(v))` as `x / sqrt(v)`, which ONNX Runtime knows as an RMS norm."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        modified = False
        for node in model.graph:
            if node.op_type != "Mul":
                continue
            for factor, other in (node.inputs, reversed(node.inputs)):
                root = _inverted(factor)
                below = root.producer() if root is not None else None
                if below is not None and below.op_type == "Sqrt":
                    node.op_type = "Div"
                    node.replace_input_with(0, other)
                    node.replace_input_with(1, root)
                    modified = True
                    break
        return ir.passes.PassResult(model, modified=modified)


def _inverted(value: ir.Value | None) -> ir.Value | None:
    """Returns x where `value` is 1 / x, however that is written."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Reciprocal":
        return node.inputs[0]
    if node is None or node.op_type != "Div" or node.inputs[0] is None:
        return None
    numerator = node.inputs[0].const_value
    one = numerator is not None and numerator.size == 1 and numerator.numpy().item() == 1
    return node.inputs[1] if one else None


class DescribeParameters(ir.passes.InPlacePass):
    """Writes kinds and tied aliases into the graph's metadata."""

    def __init__(self, names: ParameterNames) -> None:
        super().__init__()
        self.names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        model.metadata_props[PARAMETERS_KEY] = parameters_text(
            (key, kind, self.names.aliases.get(key, ())) for key, kind in self.names.kinds.items()
        )
        return ir.passes.PassResult(model, modified=True)


def lifted(model: ir.Model, names: ParameterNames) -> ir.Model:
    """Returns the graph of `model` with its parameters as inputs, optimised and without comments.

    The optimiser runs after the lift: before it, it would fold and merge weights.
    """
    model = LiftParameters(names)(model).model
    simplify(model)
    cleanup = ir.passes.Sequential(
        DivideBySqrt(),
        common_passes.RemoveUnusedNodesPass(),
        GatherEarly(),
        KeepRows(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.ClearMetadataAndDocStringPass(),
        DescribeParameters(names),
    )
    return cleanup(model).model
