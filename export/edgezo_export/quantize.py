"""A bundle whose linear weights are integers with a scale for each block or row."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgezo_export.bundle_graph import bundle_graph, save_graph
from edgezo_export.bundle_writer import complete_bundle, new_folder
from edgezo_export.quantized_linear import (
    BLOCKS,
    FORMATS,
    BlockFormat,
    Format,
    QuantizeLinears,
    quantizable,
)
from edgezo_export.signature import PARAMETERS_KEY, parameters_text
from edgezo_runtime import safetensors_file
from edgezo_runtime.bundle import GENERATE, GRAPH, SIDE_FILES, Parameter, open_bundle
from edgezo_runtime.errors import InputError


def quantize_bundle(source: Path, out: Path, name: str, block: int | None = None) -> Path:
    """Writes the bundle `source` with quantised linear layers and returns its folder `out`.

    Embeddings, norms and biases stay as they are, and so does a projection that is tied to the
    embedding. The scales are parameters that can be tuned (`--tune scales`); the integers are not.

    Args:
        source: a bundle of float32 weights.
        out: the new bundle's folder; must not exist yet.
        name: one of `FORMATS`: ``"int4"`` or ``"int8"``.
        block: weights of int4 that share a scale, one of `BLOCKS`; 32 if None.

    Raises:
        InputError: there is no such format or block, `source` has an adapter, or no linear layer of
            float32 that could be quantised, or `out` exists.
    """
    if name not in FORMATS:
        raise InputError(f"cannot quantise to {name!r}; use one of {', '.join(FORMATS)}")
    form = FORMATS[name] if block is None else _with_block(name, block)
    bundle = open_bundle(source)
    if bundle.manifest.adapter:
        raise InputError(
            f"{source} has a {bundle.manifest.adapter['kind']} adapter: quantise the bundle that "
            "it was made from, and add the adapter to that"
        )
    before = bundle.manifest.parameters
    models = {GRAPH: bundle_graph(bundle.read_graph())}
    if bundle.generates:
        models[GENERATE] = bundle_graph(bundle.read_graph(GENERATE))
    chosen = set.intersection(*(quantizable(model, before) for model in models.values()))
    if not chosen:
        raise InputError(f"{source} has no linear layer of float32 weights that can be quantised")
    quantise = QuantizeLinears(form, before, chosen)
    for model in models.values():
        quantise(model)
        model.metadata_props[PARAMETERS_KEY] = parameters_text(
            (p.name, p.kind, p.aliases) for p in quantise.parameters
        )
    tensors = _Tensors(bundle.weights, form, quantise.replaced)
    with new_folder(out) as folder:
        for file, model in models.items():
            save_graph(model, folder / file)
        for file in SIDE_FILES:
            if (bundle.folder / file).is_file():
                shutil.copyfile(bundle.folder / file, folder / file)
        complete_bundle(
            folder,
            tensors,
            context_length=bundle.manifest.context_length,
            task=bundle.manifest.task,
            made_with=("onnxruntime",),
            form=bundle.manifest.form,
        )
    return out


def _with_block(name: str, block: int) -> Format:
    if not isinstance(FORMATS[name], BlockFormat):
        raise InputError(f"{name} has a scale for each output and no blocks: leave --block out")
    if block not in BLOCKS:
        raise InputError(f"--block is {block}; use one of {', '.join(map(str, BLOCKS))}")
    return BlockFormat(block)


class _Tensors:
    """Gives each tensor of the new bundle; one layer at a time is quantised and in memory."""

    def __init__(self, weights: Path, form: Format, replaced: dict[str, tuple[str, bool]]) -> None:
        self._path = weights
        self._entries = safetensors_file.read_header(weights)
        self._form = form
        self._replaced = replaced
        self._last: tuple[str, dict[str, np.ndarray]] = ("", {})

    def __call__(self, parameter: Parameter) -> np.ndarray:
        """Returns the value of `parameter`, C-contiguous, in storage dtype."""
        if parameter.name not in self._replaced:
            return safetensors_file.map_tensor(self._path, self._entries[parameter.name])
        source, flipped = self._replaced[parameter.name]
        if self._last[0] != source:
            weight = safetensors_file.map_tensor(self._path, self._entries[source])
            if not np.isfinite(weight).all():
                raise InputError(f"{self._path} holds NaN or infinity in {source}")
            self._last = (source, self._form.quantize(source, weight.T if flipped else weight))
        return self._last[1][parameter.name]
