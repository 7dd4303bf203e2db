"""LoRA and norms over quantised weights, from the command line to what other programs load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused
from quantized_weights import tensors, unpacked

from edgezo.cli.common import open_model
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.safetensors_file import map_tensor, read_header

FLAGS = (
    "--steps", 2, "--threads", 1, "--batch-size", 4, "--lr", 0.1, "--eps", 1e-2,
    "--start", "base",
)  # fmt: skip
LORA = ("--tune", "lora", "--rank", 2, "--target", "all-linear")


def succeed(*words: object) -> None:
    done = called(*words)
    assert done.status == 0, done.err


def train(bundle: Path, data: Path, out: Path, *flags: object) -> Path:
    succeed("train", bundle, "--data", data / "train.jsonl", "--out", out, *FLAGS, *flags)
    return out


def replayed(run: Path, base: Path, out: Path) -> Path:
    succeed("replay", run, "--base", base, "--out", out)
    return out


@pytest.fixture(scope="module", params=["int4", "int8"])
def plain(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model in integers."""
    out = tmp_path_factory.mktemp("quantized") / f"{request.param}.edgezo"
    succeed("export", tiny_bundle, "--quantize", request.param, "--out", out)
    return out


@pytest.fixture(scope="module")
def lora_run(plain: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA over the integers."""
    return train(plain, data, tmp_path_factory.mktemp("lora") / "run", *LORA)


def test_one_step_or_two_give_one_run(
    plain: Path, lora_run: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once.edgezo", tmp_path / "twice.edgezo"
    succeed("export", tiny_bundle, "--quantize", plain.stem, *LORA, "--out", once)
    succeed("export", plain, *LORA, "--out", twice)
    for file in ("edgezo.json", "graph.onnx", "model.safetensors"):
        assert (once / file).read_bytes() == (twice / file).read_bytes()
    other = train(once, data, tmp_path / "run")
    for file in ("adapter_model.safetensors", "journal.ezj"):
        assert (other / file).read_bytes() == (lora_run / file).read_bytes()
    out = replayed(lora_run, plain, tmp_path / "replayed")
    mine = (lora_run / "adapter_model.safetensors").read_bytes()
    assert (out / "adapter_model.safetensors").read_bytes() == mine
    first = (lora_run / "adapter_init.safetensors").read_bytes()
    assert first[-64:] != mine[-64:]


def test_bad_words(plain: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "no.edgezo")
    refused(called("export", tiny_bundle, "--block", 128, *out), 2, "--quantize int4")
    words = ("export", tiny_bundle, "--quantize", plain.stem)
    refused(called(*words, "--tune", "norm", *out), 2, "edgezo train", "lora, prefix, prompt")
    refused(called(*words, "--rank", 2, *out), 2, "rank is a setting of adapters")
    refused(called("export", plain, "--quantize", "int4", *out), 2, "no linear layer")
    assert not list(tmp_path.iterdir())


def test_norms_over_integers(plain: Path, data: Path, tmp_path: Path) -> None:
    run = train(plain, data, tmp_path / "run", "--tune", "norm")
    out = replayed(run, plain, tmp_path / "replayed")
    tuned = run / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == tuned.read_bytes()
    entries, kinds = read_header(tuned), set()
    base = open_bundle(plain)
    kept = tensors(base)
    for parameter in base.manifest.parameters:
        same = np.array_equal(map_tensor(tuned, entries[parameter.name]), kept[parameter.name])
        assert same == (parameter.kind != "norm")
        kinds.add(parameter.kind)
    assert kinds == {"embedding", "norm", "quantized", "scale"}
    refused(
        called("save", run, "--out", tmp_path / "no"), 2, "quantised weights", "use onnx or genai"
    )
    succeed("save", run, "--format", "onnx", "--out", tmp_path / "onnx")
    feeds, logits = predictions(run)
    np.testing.assert_allclose(plain_logits(tmp_path / "onnx", feeds), logits, atol=1e-4)


def predictions(run: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns tokens, and the run's own logits for each of them."""
    ids = np.random.default_rng(0).integers(3, 400, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    every = np.arange(ids.size)
    batch = Batch(
        **feeds,
        positions=every,
        targets=np.zeros_like(every),
        candidates=np.arange(512),
        objective=TokenLoss(len(ids)),
    )
    logits = open_model(run, None, 1)[0].forward(batch)["candidate_logits"]
    return feeds, logits.reshape(*ids.shape, -1)


def plain_logits(folder: Path, feeds: dict[str, np.ndarray], adapter: bool = False) -> np.ndarray:
    """Returns what a session of its own computes for `feeds` with `model.onnx` of `folder`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(folder / "model.onnx", options)
    run_options = ort.RunOptions()
    if adapter:
        loaded = ort.LoraAdapter()
        loaded.Load(str(folder / "adapter.onnx_adapter"))
        run_options.add_active_adapter(loaded)
    return np.asarray(session.run(["logits"], feeds, run_options)[0])


def test_peft_loads_the_adapter(
    plain: Path, lora_run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """On the float checkpoint, and with the same predictions where that holds the integers."""
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from safetensors.numpy import load_file, save_file
    from transformers import AutoModelForCausalLM

    succeed("save", lora_run, "--format", "peft", "--out", tmp_path / "peft")
    feeds, logits = predictions(lora_run)
    rounded = shutil.copytree(tiny_checkpoint, tmp_path / "rounded")
    weights, stored = load_file(rounded / "model.safetensors"), tensors(open_bundle(plain))
    for name, weight in weights.items():
        if f"{name}_packed" in stored:
            values = unpacked(name, stored)[:, : weight.shape[1]]
            weights[name] = np.ascontiguousarray(values, np.float32)
    save_file(weights, rounded / "model.safetensors", {"format": "pt"})
    found = []
    for checkpoint in (tiny_checkpoint, rounded):
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        tuned = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
        with torch.no_grad():
            found.append(tuned(torch.from_numpy(feeds["input_ids"])).logits.numpy())
            adapted, tuned = found[-1], tuned.unload()
            moved = adapted - tuned(torch.from_numpy(feeds["input_ids"])).logits.numpy()
        assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(found[1], logits, atol=1e-4)
    assert np.abs(found[0] - logits).max() > 1e-4


def test_an_adapter_over_integers_is_saved(lora_run: Path, tmp_path: Path) -> None:
    succeed("save", lora_run, "--format", "onnx-adapter", "--out", tmp_path / "out")
    succeed("save", lora_run, "--format", "genai", "--out", tmp_path / "genai")
    feeds, logits = predictions(lora_run)
    tuned = plain_logits(tmp_path / "out", feeds, adapter=True)
    np.testing.assert_allclose(tuned, logits, atol=1e-4)
    assert np.abs(plain_logits(tmp_path / "out", feeds) - logits).max() > 0.01
    genai: Any = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(tmp_path / "genai"))
    generator, adapters = (
        genai.Generator(model, genai.GeneratorParams(model)),
        genai.Adapters(model),
    )
    adapters.load(str(tmp_path / "out" / "adapter.onnx_adapter"), "tuned")
    generator.set_active_adapter(adapters, "tuned")
    generator.append_tokens(feeds["input_ids"][0].astype(np.int32))
    given = np.array(generator.get_logits()).reshape(-1)
    np.testing.assert_allclose(given, logits[0, -1], atol=1e-4)
    for style in ("merged", "onnx"):
        words = ("save", lora_run, "--format", style, "--out", tmp_path / "no")
        refused(called(*words), 2, "over quantised weights", "peft or onnx-adapter or genai")
