"""What an attention's queries, keys and values, split into heads, are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from edgezo_export.lean.edit import (
    Editor,
    constant,
    made_by,
    operand,
    permutes,
    scalar,
    sizes,
    uncast,
)


@dataclass(frozen=True)
class Rotation:
    """The angles that tokens are turned by.

    Attributes:
        cos: their cosines, (1, length, features of a head), the second half as the first.
        sin: their sines.
    """

    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class Heads:
    """What a value (batch, heads, length, features) is made of.

    Attributes:
        tokens: (batch, length, heads * features), before heads are repeated.
        heads: number of them.
        features: of each.
        factor: what `tokens` are multiplied with.
        rotation: how they are turned then.
        repeats: how often each head stands behind itself in the end.
    """

    tokens: ir.Value
    heads: int
    features: int
    factor: float = 1.0
    rotation: Rotation | None = None
    repeats: int = 1


def read_heads(value: ir.Value) -> Heads | None:
    """Returns what `value` is made of, or None if it is something else."""
    node = value.producer()
    if node is None:
        return None
    if permutes(node, 0, 2, 1, 3):
        return split_tokens(operand(node, 0))
    if node.op_type == "Mul":
        factor, inner = scalar(node.inputs[1]), read_heads(operand(node, 0))
        if factor is not None and inner is not None:
            return replace(inner, factor=inner.factor * factor)
    if node.op_type == "Reshape":
        return _repeated(node)
    return _rotated(node) if node.op_type == "Add" else None


def split_tokens(value: ir.Value) -> Heads | None:
    """Returns what `value`, (batch, length, heads, features), is the Reshape of."""
    node = made_by(value, "Reshape")
    split = sizes(value)
    if node is None or len(split) != 4:
        return None
    tokens, factor = operand(node, 0), 1.0
    scaling = made_by(tokens, "Mul")
    if scaling is not None and (found := scalar(scaling.inputs[1])) is not None:
        tokens, factor = operand(scaling, 0), found
    heads, features = split[2:]
    if not isinstance(heads, int) or not isinstance(features, int):
        return None
    if len(sizes(tokens)) != 3 or sizes(tokens)[-1] != heads * features:
        return None
    return Heads(tokens, heads, features, factor)


def _repeated(node: ir.Node) -> Heads | None:
    expand = made_by(node.inputs[0], "Expand")
    unsqueeze = made_by(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if unsqueeze is None:
        return None
    axes, inner = constant(unsqueeze.inputs[1]), read_heads(operand(unsqueeze, 0))
    heads = [*sizes(node.outputs[0]), None, None][1]
    if inner is None or axes is None or axes.tolist() != [2] or not isinstance(heads, int):
        return None
    return replace(inner, repeats=heads // inner.heads) if inner.repeats == 1 else None


def _rotated(node: ir.Node) -> Heads | None:
    """Reads `x * cos + concat(-x[half:], x[:half]) * sin`."""
    straight, turned = made_by(node.inputs[0], "Mul"), made_by(node.inputs[1], "Mul")
    swap = made_by(turned.inputs[0], "Concat") if turned is not None else None
    if straight is None or turned is None or swap is None or len(swap.inputs) != 2:
        return None
    if swap.attributes.get_int("axis", 0) not in (-1, 3):
        return None
    value = operand(straight, 0)
    heads = read_heads(value)
    negative = made_by(swap.inputs[0], "Neg")
    if heads is None or negative is None or heads.rotation is not None or heads.repeats != 1:
        return None
    half = heads.features // 2
    end = 1 << 31
    if not _is_slice(operand(negative, 0), value, half, end):
        return None
    cos, sin = (_angles(operand(n, 1)) for n in (straight, turned))
    if not _is_slice(operand(swap, 1), value, 0, half) or cos is None or sin is None:
        return None
    return replace(heads, rotation=Rotation(cos, sin))


def _is_slice(found: ir.Value, value: ir.Value, start: int, stop: int) -> bool:
    """Whether `found` is `value[..., start:stop]`."""
    node = made_by(found, "Slice")
    if node is None or operand(node, 0) is not value or len(node.inputs) not in (4, 5):
        return False
    first, last, axis, *step = (scalar(v) for v in node.inputs[1:])
    ends = last is not None and (last == stop or (last >= stop and stop == 1 << 31))
    return first == start and ends and axis in (3, -1) and step in ([], [1])


def _angles(value: ir.Value) -> ir.Value | None:
    """Returns (1, length, features), both halves of which are equal, that `value` has heads of."""
    unsqueeze = made_by(value, "Unsqueeze")
    axes = constant(unsqueeze.inputs[1]) if unsqueeze is not None else None
    if unsqueeze is None or axes is None or axes.tolist() != [1]:
        return None
    table = operand(unsqueeze, 0)
    inner = uncast(table)
    scaling = made_by(inner, "Mul")
    if scaling is not None and scalar(scaling.inputs[1]) is not None:
        inner = uncast(operand(scaling, 0))
    wave = made_by(inner, "Cos", "Sin")
    both = made_by(wave.inputs[0], "Concat") if wave is not None else None
    if both is None or len(both.inputs) != 2 or both.inputs[0] is not both.inputs[1]:
        return None
    last = both.attributes.get_int("axis", 0) in (-1, 2)
    return table if last and len(sizes(table)) == 3 and sizes(table)[0] == 1 else None


class Tables:
    """Makes the tables that RotaryEmbedding takes, (length, half a head), once for all layers."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, angles: ir.Value) -> ir.Value:
        """Returns the table of cosines or sines, (1, length, features of a head)."""
        if angles not in self._made:
            before, _ = next(iter(angles.uses()))
            integers = self._editor.integers
            half = int(str(sizes(angles)[-1])) // 2
            assert angles.shape is not None
            cut = self._editor.put(
                before, "Slice", angles, integers(0), integers(half), integers(2)
            )
            cut.name, cut.type = f"{angles.name}_half", angles.type
            cut.shape = ir.Shape([*angles.shape[:2], half])
            table = self._editor.put(before, "Reshape", cut, integers(-1, half))
            table.name, table.type = f"{angles.name}_table", angles.type
            table.shape = ir.Shape([angles.shape[1], half])
            self._made[angles] = table
        return self._made[angles]
