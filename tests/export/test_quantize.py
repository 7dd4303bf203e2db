"""Bundles of quantised weights: what they compute, and what of them is tuned."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_files import classifier, save
from onnxruntime.quantization.quant_utils import QuantType, quantize_nparray
from quantized_weights import tensors, unpacked
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from edgezo import Tuner, load
from edgezo_export.adapters.base import adapt, write_adapted
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.quantize import quantize_bundle
from edgezo_export.quantized_linear import FORMATS, LEAST_SCALE
from edgezo_export.verify import sample_batch
from edgezo_runtime import safetensors_file
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import QUANTIZED, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

NAMES = tuple(FORMATS)
MODELS = ("llama_tied", "llama_untied", "opt")


def loaded(folder: Path, tune: str = "full") -> Model:
    """Loads a tiny bundle, which has no tokenizer, with one that nothing uses."""
    if not (folder / "tokenizer.json").exists():
        Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return load(folder, tune=tune)


def batch(vocabulary: int = 96) -> Batch:
    return Batch(**sample_batch(vocabulary, 3, 9), objective=TokenLoss(3))


@pytest.fixture(scope="session")
def quantized(
    bundle_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Returns the folder of a tiny quantised bundle, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(model: str, form: str) -> Path:
        if (model, form) not in made:
            out = tmp_path_factory.mktemp("quantized") / f"{model}-{form.replace('/', '-')}.edgezo"
            name, _, block = form.partition("/")
            made[model, form] = quantize_bundle(
                bundle_folder(model), out, name, int(block) if block else None
            )
        return made[model, form]

    return folder


@pytest.mark.parametrize(
    ("model", "form"), [*itertools.product(MODELS, NAMES), ("llama_tied", "int4/128")]
)
def test_it_computes_with_the_weights_that_its_integers_stand_for(
    model: str,
    form: str,
    bundle_folder: Callable[[str], Path],
    quantized: Callable[[str, str], Path],
) -> None:
    small, whole = loaded(quantized(model, form)), loaded(bundle_folder(model))
    stored = tensors(small.bundle)
    replaced = 0
    for parameter in whole.bundle.manifest.parameters:
        if f"{parameter.name}_packed" in stored:
            view = whole.arena.views[parameter.name]
            weight = unpacked(parameter.name, stored)[:, : view.shape[1]]
            step = stored[f"{parameter.name}_scale"].max()
            assert np.abs(view - weight).max() <= step  # a step, for the zero point rounds too
            view[...] = weight
            replaced += 1
    assert replaced >= 12
    before, after = whole.forward(batch()), small.forward(batch())
    np.testing.assert_allclose(after["logprobs"], before["logprobs"], atol=1e-4)
    np.testing.assert_allclose(after["candidate_logits"], before["candidate_logits"], atol=1e-4)


def test_rows_are_rounded_as_onnxruntime_does(quantized: Callable[[str, str], Path]) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    stored = FORMATS["int8"].quantize("w", weight)
    for row, packed, scale in zip(weight, stored["w_packed"], stored["w_scale"], strict=True):
        zero = np.array(0, np.int8)
        theirs = quantize_nparray(QuantType.QInt8.tensor_type, row, scale, zero, -127, 127)
        np.testing.assert_array_equal(
            packed.reshape(-1)[:33], np.asarray(theirs).astype(np.int64) + 128
        )
        assert (packed.reshape(-1)[33:] == 128).all()


@pytest.mark.parametrize("form", NAMES)
def test_every_scale_moves_the_loss_and_no_integer_is_trained(
    form: str, quantized: Callable[[str, str], Path]
) -> None:
    model = loaded(quantized("llama_tied", form), tune="scales")
    assert {p.kind for p in model.arena.parameters} == {"scale"}
    assert "quantized" not in {p.kind for p in loaded(quantized("opt", form)).arena.parameters}
    before = model.forward(batch())["logprobs"].copy()
    for view in model.arena.views.values():
        kept = view.copy()
        view *= np.linspace(0.5, 1.5, view.size, dtype=np.float32).reshape(view.shape)
        assert not np.array_equal(model.forward(batch())["logprobs"], before)
        view[...] = kept
    np.testing.assert_array_equal(model.forward(batch())["logprobs"], before)


@pytest.mark.parametrize("form", NAMES)
def test_a_scale_below_zero_counts_as_the_least_one(
    form: str, quantized: Callable[[str, str], Path]
) -> None:
    model = loaded(quantized("llama_tied", form), tune="scales")
    view = next(iter(model.arena.views.values()))
    view[0] = LEAST_SCALE
    least = model.forward(batch())["logprobs"].copy()
    view[0] = -3
    np.testing.assert_array_equal(model.forward(batch())["logprobs"], least)


@pytest.mark.parametrize("form", NAMES)
def test_tuning_scales_lowers_the_loss_and_keeps_the_integers(
    form: str, quantized: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = loaded(quantized("llama_tied", form), tune="scales")
    tuner = Tuner(model, method="qzo", lr=1e-4, eps=1e-3, run=tmp_path / "run")
    losses = [tuner.step(batch()).loss for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05
    tuner.save()
    tuner.close()
    saved = safetensors_file.read_header(tmp_path / "run" / "model.safetensors")
    for name, value in tensors(model.bundle).items():
        kept = safetensors_file.map_tensor(tmp_path / "run" / "model.safetensors", saved[name])
        assert np.array_equal(kept, value) == (not name.endswith("_scale"))


def test_a_row_of_zeros_can_grow() -> None:
    for form in FORMATS.values():
        stored = form.quantize("w", np.zeros((2, 32), np.float32))
        assert (stored["w_scale"] >= LEAST_SCALE).all()


def test_what_cannot_be_quantised(
    quantized: Callable[[str, str], Path], bundle_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no linear layer"):
        quantize_bundle(quantized("opt", "int8"), tmp_path / "again", "int4")
    with pytest.raises(InputError, match="use one of int4, int8"):
        quantize_bundle(bundle_folder("opt"), tmp_path / "other", "int3")
    with pytest.raises(InputError, match="one of 32, 128"):
        quantize_bundle(bundle_folder("opt"), tmp_path / "other", "int4", 64)
    with pytest.raises(InputError, match="leave --block out"):
        quantize_bundle(bundle_folder("opt"), tmp_path / "other", "int8", 32)
    adapted = tmp_path / "adapted"
    write_adapted(adapt(open_bundle(bundle_folder("opt")), {"kind": "lora"}), adapted)
    with pytest.raises(InputError, match="add the adapter to that"):
        quantize_bundle(adapted, tmp_path / "other", "int4")
    shutil.rmtree(adapted)
    assert not list(tmp_path.iterdir())


def test_neither_text_nor_arrays_need_torch(
    bundle_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    onnx_to_bundle(save(classifier(), tmp_path / "m.onnx"), tmp_path / "arrays.edgezo")
    sources = [str(bundle_folder("opt")), str(tmp_path / "arrays.edgezo")]
    script = f"""
import sys
from pathlib import Path
for name in ("torch", "transformers", "optimum"):
    sys.modules[name] = None  # importing it raises
from edgezo_export.quantize import quantize_bundle
for number, source in enumerate({sources!r}):
    quantize_bundle(Path(source), Path({str(tmp_path)!r}) / f"{{number}}.edgezo", "int4")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    for number in range(len(sources)):
        made = open_bundle(tmp_path / f"{number}.edgezo").manifest
        assert any(parameter.kind == QUANTIZED for parameter in made.parameters)


def test_a_quantised_masked_model_is_one(
    family_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    small = open_bundle(quantize_bundle(family_bundle("bert"), tmp_path / "b.edgezo", "int8"))
    assert small.manifest.form == {"kind": "masked"}


def test_the_first_part_of_a_graph_takes_its_constants(
    quantized: Callable[[str, str], Path],
) -> None:
    folder = quantized("llama_tied", "int4")
    whole, cut = loaded(folder), loaded(folder, tune="model.layers.1.*scale")
    np.testing.assert_array_equal(
        cut.forward(batch())["logprobs"], whole.forward(batch())["logprobs"]
    )
    assert open_bundle(folder).manifest.versions["onnxruntime"]


@pytest.mark.parametrize("form", NAMES)
def test_integers_lie_in_the_session_alone(
    form: str, quantized: Callable[[str, str], Path]
) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("elsewhere nobody tells which pages are held")
    model = loaded(quantized("opt", form))
    model.forward(batch())
    for name, array in model.weights.frozen().items():
        assert name.endswith(("_packed", "_zero_point"))
        assert held_at(array.__array_interface__["data"][0]) == 0


def held_at(address: int) -> int:
    """Returns how many kB are held of the mapping that `address` lies in."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, stop = (int(part, 16) for part in first.split("-"))
            within = start <= address < stop
        elif within and first == "Rss:":
            return int(rest[0])
    raise AssertionError("no mapping is there")
