"""The vocabulary projection and its log-probabilities, a few answers at a time.

Logits of many answers are the largest values of a forward pass by far: four pieces of them need a
quarter of the memory. Few answers are all in the first piece, and the others are empty.
"""

from __future__ import annotations

import onnx_ir as ir

from edgezo_export.lean.edit import (
    Editor,
    describe,
    made_by,
    operand,
    sizes,
    take_place,
    uncast,
)

PIECES = 4
FEWEST = 256  # answers of a piece, if there are more than one
_SMALL = 64  # outputs that are labels, not a vocabulary
_LOGSUMEXP = {"Reshape", "ReduceLogSumExp", "LogSoftmax", "Gather", "Sub", "Squeeze", "Cast"}


class SplitHead(ir.passes.InPlacePass):
    """Computes the targets' log-probabilities in pieces, and candidates from their own rows."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass; it changes nothing where the logits are used in another way."""
        outputs = {str(value.name): value for value in model.graph.outputs}
        inputs = {str(value.name): value for value in model.graph.inputs}
        chosen, logprobs = outputs.get("candidate_logits"), outputs.get("logprobs")
        product = _projection(chosen, logprobs)
        if product is None or chosen is None or logprobs is None:
            return ir.passes.PassResult(model, modified=False)
        editor = Editor(model.graph)
        before = model.graph[-1]
        _ask_candidates(editor, before, product, inputs["candidates"], chosen)
        _ask_targets(editor, before, product, inputs["targets"], logprobs)
        model.graph.sort()
        return ir.passes.PassResult(model, modified=True)


def _projection(chosen: ir.Value | None, logprobs: ir.Value | None) -> ir.Node | None:
    """Returns the product of answers and vocabulary that both outputs are made of, and no other."""
    gather, difference = made_by(chosen, "Gather"), made_by(logprobs, "Sub")
    if gather is None or difference is None or gather.attributes.get_int("axis", 0) != 1:
        return None
    logits = operand(gather, 0)
    product = made_by(uncast(logits), "FusedMatMul")
    if product is None or product.attributes.get_int("transB", 0) != 1:
        return None
    vocabulary, rank = sizes(operand(product, 1))[0], len(sizes(operand(product, 0)))
    if not isinstance(vocabulary, int) or vocabulary < _SMALL or rank != 2:
        return None
    squeeze = made_by(difference.inputs[0], "Squeeze")
    target = made_by(squeeze.inputs[0], "GatherElements") if squeeze is not None else None
    if target is None or operand(target, 0) is not logits:
        return None
    read = _between(logits, operand(difference, 1)) | {gather, target}
    return product if all(user in read for user, _ in logits.uses()) else None


def _between(logits: ir.Value, normaliser: ir.Value) -> set[ir.Node]:
    """Returns the nodes that make the logits' log-sum-exp; none if they do something else."""
    found: set[ir.Node] = set()
    waiting = [normaliser]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value is logits or node is None or node in found:
            continue
        if node.op_type not in _LOGSUMEXP:
            return set()
        found.add(node)
        waiting += [v for v in node.inputs if v is not None]
    return found


def _ask_candidates(
    editor: Editor, before: ir.Node, product: ir.Node, candidates: ir.Value, output: ir.Value
) -> None:
    rows, weight = operand(product, 0), operand(product, 1)
    picked = editor.put(before, "Gather", weight, candidates, axis=0)
    assert weight.shape is not None and candidates.shape is not None
    describe(picked, "candidate_rows", weight, ir.Shape([candidates.shape[0], weight.shape[1]]))
    logits = editor.put(before, "FusedMatMul", rows, picked, transB=1)
    take_place(output, _widened(editor, before, logits, rows, output))


def _ask_targets(
    editor: Editor, before: ir.Node, product: ir.Node, targets: ir.Value, output: ir.Value
) -> None:
    rows, weight = operand(product, 0), operand(product, 1)
    starts, ends, pads, count = _plan(editor, before, targets)
    zero, one = editor.integers(0), editor.integers(1)
    column = editor.put(before, "Unsqueeze", targets, one)
    pieces = []
    for start, end, pad in zip(starts, ends, pads, strict=True):
        some = editor.put(before, "Slice", rows, start, end, zero)
        wanted = editor.put(before, "Slice", column, start, end, zero)
        logits = editor.put(before, "FusedMatMul", some, weight, transB=1)
        logits = _widened(editor, before, logits, rows, output)
        every = editor.put(before, "LogSoftmax", logits, axis=1)
        found = editor.put(before, "GatherElements", every, wanted, axis=1)
        # Pieces of one size: with others ONNX Runtime copies a table of them to the card.
        pieces.append(editor.put(before, "Pad", found, pad, None, zero))
    both = editor.put(before, "Concat", *pieces, axis=0)
    answers = editor.put(before, "Slice", both, zero, count, zero)
    take_place(output, editor.put(before, "Squeeze", answers, one))


def _plan(
    editor: Editor, before: ir.Node, targets: ir.Value
) -> tuple[list[ir.Value], list[ir.Value], list[ir.Value], ir.Value]:
    """Returns where each piece starts and ends, how it is padded, and the number of answers.

    Small integers, which ONNX Runtime computes on the host.
    """

    def put(operator: str, *inputs: ir.Value) -> ir.Value:
        return editor.put(before, operator, *inputs)

    count = put("Shape", targets)
    rounded = put("Add", count, editor.integers(PIECES - 1))
    equal = put("Div", rounded, editor.integers(PIECES))
    size = put("Max", equal, put("Min", count, editor.integers(FEWEST)))
    first = put("Min", put("Mul", size, editor.integers(*range(PIECES))), count)
    last = put("Min", put("Mul", size, editor.integers(*range(1, PIECES + 1))), count)
    short = put("Sub", size, put("Sub", last, first))
    pairs = put("Mul", put("Reshape", short, editor.integers(PIECES, 1)), editor.table([[0, 1]]))
    pads = put("Reshape", pairs, editor.integers(2 * PIECES))
    starts, ends, amounts = (
        editor.put_many(PIECES, before, "Split", value, num_outputs=PIECES)
        for value in (first, last, pads)
    )
    return starts, ends, amounts, count


def _widened(
    editor: Editor, before: ir.Node, logits: ir.Value, rows: ir.Value, output: ir.Value
) -> ir.Value:
    if rows.dtype == output.dtype:
        return logits
    assert output.dtype is not None
    return editor.put(before, "Cast", logits, to=output.dtype)
