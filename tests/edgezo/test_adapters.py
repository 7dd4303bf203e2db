"""A LoRA run, from the command line to the programs that load what it leaves."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, contents, quick_line, refused, succeed
from test_kill import go_on, killed

from edgezo_runtime.journal import read

STEPS = 120
FLAGS = (
    "--steps", STEPS, "--threads", 1, "--batch-size", 8, "--lr", 3e-3, "--eps", 1e-2,
    "--start", "base",
)  # fmt: skip


def begin(bundle: Path, data: Path, out: Path, *flags: object) -> tuple[object, ...]:
    files = ("--data", data / "train.jsonl", "--eval-data", data / "dev.jsonl", "--out", out)
    return ("train", bundle, *files, *FLAGS, *flags)


def result(run: Path) -> tuple[bytes, bytes]:
    return (run / "adapter_model.safetensors").read_bytes(), (run / "journal.ezj").read_bytes()


def mean_losses(run: Path) -> tuple[float, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return float(np.mean(losses[:15])), float(np.mean(losses[-15:]))


@pytest.fixture(scope="module")
def lora_run(tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA."""
    out = tmp_path_factory.mktemp("lora") / "run"
    done = called(*begin(tiny_bundle, data, out, "--tune", "lora", "--rank", 4))
    assert done.status == 0, done.err
    return out


@pytest.fixture(scope="module")
def lora_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with the run's adapter in its graph."""
    out = tmp_path_factory.mktemp("bundles") / "lora.edgezo"
    done = called("export", tiny_bundle, "--tune", "lora", "--rank", 4, "--out", out)
    assert done.status == 0, done.err
    return out


def test_the_loss_falls_and_only_the_adapter_is_kept(
    lora_run: Path, tiny_bundle: Path, data: Path
) -> None:
    first, last = mean_losses(lora_run)
    assert last < 0.7 * first
    assert not (lora_run / "model.safetensors").exists()
    header = read(lora_run / "journal.ezj").header
    assert header["tune"] == "lora" and header["adapter"]["rank"] == 4
    assert header["adapter_init"] == contents(lora_run)["adapter_init.safetensors"]
    told = called("eval", lora_run, "--data", data / "dev.jsonl", "--json")
    kept = [json.loads(line) for line in (lora_run / "metrics.jsonl").read_text().splitlines()]
    assert told.json["loss"] == pytest.approx(kept[-1]["eval"]["loss"], abs=1e-6)
    assert called("generate", lora_run, "the film", "--max-tokens", 2).status == 0
    assert called("info", lora_run, "--json").json["finished"]


@pytest.mark.parametrize("tune", ["norm", "head,*.mlp.*", "bitfit"])
def test_selections_train(tiny_bundle: Path, data: Path, tmp_path: Path, tune: str) -> None:
    done = called(*begin(tiny_bundle, data, tmp_path / "run", "--tune", tune))
    if tune == "norm":
        assert done.status == 0, done.err
        first, last = mean_losses(tmp_path / "run")
        assert last < first
    else:  # the tiny Llama has tied embeddings and no biases
        refused(done, 2, "tied" if "head" in tune else "biases")


def test_an_exported_adapter_is_the_same_run(
    lora_run: Path, lora_bundle: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    weights = (lora_bundle / "model.safetensors", tiny_bundle / "model.safetensors")
    assert weights[0].samefile(weights[1])
    done = called(*begin(lora_bundle, data, tmp_path / "run"))
    assert done.status == 0, done.err
    assert result(tmp_path / "run") == result(lora_run)
    refused(called(*begin(lora_bundle, data, tmp_path / "no", "--tune", "norm")), 2, "lora")
    other = begin(lora_bundle, data, tmp_path / "no", "--tune", "lora", "--rank", 8)
    refused(called(*other), 2, "has rank 4, not 8")


def test_replay_is_byte_exact(
    lora_run: Path, lora_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copyfile(lora_run / "journal.ezj", tmp_path / "mailed")
    for number, (run, base) in enumerate(
        [(lora_run, tiny_bundle), (lora_run, lora_bundle), (tmp_path / "mailed", tiny_bundle)]
    ):
        out = tmp_path / f"out-{number}"
        done = called("replay", run, "--base", base, "--out", out, "--threads", 1 + number)
        assert done.status == 0, done.err
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (out / name).read_bytes() == (lora_run / name).read_bytes()


def test_another_beginning_is_refused(lora_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    path = run / "adapter_init.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    refused(called("resume", run), 2, "adapter_init.safetensors", "changed or damaged")
    out = ("--base", tiny_bundle, "--out", tmp_path / "out")
    refused(called("replay", run, *out), 2, "adapter_init.safetensors")
    path.unlink()
    assert called("replay", run, *out).status == 0  # drawn again


def test_kill_and_resume(lora_run: Path, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    out = tmp_path / "run"
    words = begin(tiny_bundle, data, out, "--tune", "lora", "--rank", 4, "--snapshot-every", 9)
    kills = sum(killed(quick_line(*go_on(words, out)), generator.uniform(1, 3)) for _ in range(4))
    assert kills
    if not (out / "adapter_model.safetensors").exists():
        succeed(*go_on(words, out))
    assert result(out) == result(lora_run)


def test_without_the_packages_the_export_command_is_named(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edgezo_export.adapters.base", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, None)
    done = called(*begin(tiny_bundle, data, tmp_path / "run", "--tune", "lora"))
    refused(done, 1, "edgezo[onnx]", "edgezo export", "--tune lora")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--rank", 4), ("rank is a setting of adapters", "--tune is upper")),
        (("--tune", "lora", "--rank", 0), ("rank is 0",)),
        (("--tune", "lora", "--target", "query"), ("'query'", "self_attn")),
    ],
)
def test_bad_settings(
    tiny_bundle: Path, data: Path, tmp_path: Path, words: tuple, parts: tuple[str, ...]
) -> None:
    refused(called(*begin(tiny_bundle, data, tmp_path / "run", *words)), 2, *parts)
    assert not (tmp_path / "run").exists()


def test_a_bundle_is_not_exported_again(tiny_bundle: Path, tmp_path: Path) -> None:
    refused(called("export", tiny_bundle, "--out", tmp_path / "b"), 2, "bundle already", "--tune")


# What other programs load


@pytest.fixture(scope="module")
def expected(lora_run: Path, tiny_checkpoint: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tokens, and the logits that PEFT computes for them with the run's own folder."""
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(0).integers(3, 400, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        plain = base(torch.from_numpy(ids)).logits.numpy()
        tuned = PeftModel.from_pretrained(base, str(lora_run)).eval()(torch.from_numpy(ids))
    assert np.abs(tuned.logits.numpy() - plain).max() > 0.1
    return feeds, tuned.logits.numpy()


def save(run: Path, style: str, out: Path) -> Path:
    done = called("save", run, "--format", style, "--out", out)
    assert done.status == 0, done.err
    return out


def test_peft_computes_the_run_s_predictions(
    lora_run: Path, expected: tuple[dict[str, np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    from edgezo.cli.common import open_model
    from edgezo_runtime.batch import Batch, TokenLoss

    feeds, logits = expected
    rows, length = feeds["input_ids"].shape
    every = np.arange(rows * length)
    batch = Batch(
        **feeds,
        positions=every,
        targets=np.zeros_like(every),
        candidates=np.arange(512),
        objective=TokenLoss(rows),
    )
    ours = open_model(lora_run, None, 1)[0].forward(batch)["candidate_logits"]
    np.testing.assert_allclose(ours.reshape(logits.shape), logits, atol=1e-4)
    written = save(lora_run, "peft", tmp_path / "peft")
    assert set(contents(written).items()) <= set(contents(lora_run).items())
    assert len(contents(written)) == 2


def test_merged_weights_are_a_checkpoint(
    lora_run: Path, expected: tuple[dict[str, np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    feeds, logits = expected
    model = AutoModelForCausalLM.from_pretrained(save(lora_run, "merged", tmp_path / "merged"))
    with torch.no_grad():
        ours = model(torch.from_numpy(feeds["input_ids"])).logits.numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-4)


def test_plain_onnx(
    lora_run: Path,
    lora_bundle: Path,
    data: Path,
    expected: tuple[dict[str, np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    import onnxruntime as ort

    feeds, logits = expected
    other = tmp_path / "run"  # its base has the adapter in the graph
    assert called(*begin(lora_bundle, data, other)).status == 0
    for number, run in enumerate((lora_run, other)):
        out = save(run, "onnx", tmp_path / f"onnx-{number}")
        session = ort.InferenceSession(out / "model.onnx")
        assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
        np.testing.assert_allclose(np.asarray(session.run(["logits"], feeds)[0]), logits, atol=1e-4)


def test_onnx_adapter(
    lora_run: Path,
    tiny_checkpoint: Path,
    expected: tuple[dict[str, np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    import onnxruntime as ort
    from transformers import AutoModelForCausalLM

    feeds, logits = expected
    out = save(lora_run, "onnx-adapter", tmp_path / "out")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(out / "model.onnx", options)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        plain = base(torch.from_numpy(feeds["input_ids"])).logits.numpy()
    np.testing.assert_allclose(np.asarray(session.run(["logits"], feeds)[0]), plain, atol=1e-4)
    adapter = ort.LoraAdapter()
    adapter.Load(str(out / "adapter.onnx_adapter"))
    run_options = ort.RunOptions()
    run_options.add_active_adapter(adapter)
    tuned = np.asarray(session.run(["logits"], feeds, run_options)[0])
    np.testing.assert_allclose(tuned, logits, atol=1e-4)


def test_genai(
    lora_run: Path,
    reference: Path,
    expected: tuple[dict[str, np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    """onnxruntime-genai runs what is saved, and `Adapters` loads the adapter of either format."""
    genai: Any = pytest.importorskip("onnxruntime_genai")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    feeds, logits = expected
    ids = feeds["input_ids"][0]

    def found(folder: Path, adapter: Path | None = None) -> np.ndarray:
        """Returns what may follow the sixth token and the last."""
        model = genai.Model(str(folder))
        generator = genai.Generator(model, genai.GeneratorParams(model))
        if adapter is not None:
            adapters = genai.Adapters(model)
            adapters.load(str(adapter), "tuned")
            generator.set_active_adapter(adapters, "tuned")
        given = []
        for part in (ids[:6], ids[6:]):
            generator.append_tokens(part.astype(np.int32))
            given.append(np.array(generator.get_logits()).reshape(-1))
        return np.stack(given)

    def plain(checkpoint: Path) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        with torch.no_grad():
            return model(torch.from_numpy(ids[None])).logits.numpy()[0, [5, 8]]

    out = save(lora_run, "genai", tmp_path / "genai")
    other = save(lora_run, "onnx-adapter", tmp_path / "adapter") / "adapter.onnx_adapter"
    base = save(reference, "genai", tmp_path / "full")
    np.testing.assert_allclose(found(out), plain(out), atol=1e-4)
    np.testing.assert_allclose(found(base), plain(base), atol=1e-4)
    for adapter in (out / "adapter.onnx_adapter", other):
        np.testing.assert_allclose(found(out, adapter), logits[0, [5, 8]], atol=1e-4)
    merged = plain(save(lora_run, "merged", tmp_path / "merged"))
    np.testing.assert_allclose(found(out, other), merged, atol=1e-4)


def test_a_run_without_an_adapter(reference: Path, tmp_path: Path) -> None:
    out = save(reference, "merged", tmp_path / "merged")
    assert contents(out)["model.safetensors"] == contents(reference)["model.safetensors"]
    for style in ("peft", "onnx-adapter"):
        words = ("save", reference, "--format", style, "--out", tmp_path / "no")
        refused(called(*words), 2, "no adapter", "merged or onnx or genai")
    refused(called("save", reference, "--out", out), 2, "exists already")


# Prefix and prompt


@pytest.mark.parametrize(("tune", "lr", "eps"), [("prefix", 3e-2, 1e-1), ("prompt", 3e-2, 1e-1)])
def test_virtual_tokens(
    tune: str, lr: float, eps: float, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    settings = ("--tune", tune, "--virtual-tokens", 4)
    run = tmp_path / "run"
    done = called(*begin(tiny_bundle, data, run, *settings, "--lr", lr, "--eps", eps))
    assert done.status == 0, done.err
    first, last = mean_losses(run)
    assert last < 0.9 * first
    base = tmp_path / "adapted.edgezo"
    assert called("export", tiny_bundle, *settings, "--out", base).status == 0
    out = tmp_path / "replayed"
    done = called("replay", run, "--base", base, "--out", out)
    assert done.status == 0, done.err
    assert (out / "adapter_model.safetensors").read_bytes() == result(run)[0]
    told = called("eval", run, "--data", data / "dev.jsonl", "--json")
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert told.json["loss"] == pytest.approx(kept[-1]["eval"]["loss"], abs=1e-6)
    words = ("save", run, "--format", "merged", "--out", tmp_path / "no")
    refused(called(*words), 2, f"a {tune}", "use peft")


@pytest.mark.parametrize(("tune", "shown"), [("prompt", 10), ("prefix", 0)])
def test_peft_loads_virtual_tokens(
    tune: str, shown: int, tiny_bundle: Path, tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from edgezo.cli.common import open_model
    from edgezo_runtime.batch import Batch, TokenLoss

    run = tmp_path / "run"
    words = begin(tiny_bundle, data, run, "--tune", tune, "--lr", 3e-2, "--eps", 1e-1)
    assert called(*words).status == 0
    ids = np.random.default_rng(0).integers(3, 400, (2, 9))
    every = np.arange(ids.size)
    zeros = np.zeros_like(every)
    batch = Batch(ids, np.ones_like(ids), every, zeros, np.arange(512), TokenLoss(2))
    ours = open_model(run, None, 1)[0].forward(batch)["candidate_logits"]
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model = PeftModel.from_pretrained(base, str(save(run, "peft", tmp_path / "peft"))).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits[:, shown:].numpy()
    np.testing.assert_allclose(ours.reshape(logits.shape), logits, atol=1e-4)
