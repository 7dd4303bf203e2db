"""Makes the lean graph of a graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.bundle_graph import bundle_graph
from edgezo_export.lean.attention import FuseAttention
from edgezo_export.lean.edit import RUNTIME
from edgezo_export.lean.head import SplitHead
from edgezo_export.lean.linear import BiasLast, FuseLinear
from edgezo_export.lean.norms import FuseRmsNorm, FuseSkipNorm
from edgezo_runtime.bundle import GRAPH, LEAN
from edgezo_runtime.files import atomic_writer


def lean_graph(graph: bytes) -> bytes | None:
    """Returns the lean graph of the ONNX file `graph`, or None if nothing is to be fused.

    The same graph gives the same bytes.
    """
    model = bundle_graph(graph)
    unused = common_passes.RemoveUnusedNodesPass()
    fused = False
    for step in (FuseAttention(), FuseLinear(), BiasLast(), FuseRmsNorm(), FuseSkipNorm()):
        found = step(model).modified
        fused |= found and not isinstance(step, FuseLinear)
        unused(model)
    if not fused:
        return None
    SplitHead()(model)
    unused(model)
    model.graph.opset_imports[RUNTIME] = 1
    return ir.to_proto(model).SerializeToString(deterministic=True)


def save_lean(folder: Path) -> bool:
    """Writes `lean.onnx` beside the `graph.onnx` in `folder`, if there is one to make."""
    lean = lean_graph((folder / GRAPH).read_bytes())
    if lean is not None:
        with atomic_writer(folder / LEAN) as file:
            file.write(lean)
    return lean is not None
