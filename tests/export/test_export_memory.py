"""An export never holds two copies of the weights, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgezo_export.checkpoint_files import INDEX

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4000,
    "hidden_size": 1024,
    "intermediate_size": 9216,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Peak resident memory, mapped files included; the imports and one small export come first.
WORKER = """
import sys
from collections.abc import Mapping
from pathlib import Path
from edgezo_export.huggingface import checkpoint_to_bundle

def megabytes(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024 / 1e6

small, large, out = map(Path, sys.argv[1:])
checkpoint_to_bundle(small, out / "small.edgezo")
before = megabytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
checkpoint_to_bundle(large, out / "large.edgezo")
print(megabytes("VmHWM") - before)
"""


def write_shards(folder: Path, config: Mapping[str, object]) -> float:
    """Writes random float16 shards and returns the size of their weights as float32 in MB."""
    folder.mkdir()
    hidden, inner = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    square, wide = (hidden, hidden), (inner, hidden)
    shards: list[dict[str, tuple[int, ...]]] = [
        {
            f"model.layers.{i}.input_layernorm.weight": (hidden,),
            f"model.layers.{i}.post_attention_layernorm.weight": (hidden,),
            **{f"model.layers.{i}.self_attn.{n}_proj.weight": square for n in "qkvo"},
            **{f"model.layers.{i}.mlp.{n}_proj.weight": wide for n in ("gate", "up")},
            f"model.layers.{i}.mlp.down_proj.weight": wide[::-1],
        }
        for i in range(2)
    ]
    table = (int(str(config["vocab_size"])), hidden)
    ends = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    shards.append({**ends, "model.norm.weight": (hidden,)})
    generator = np.random.Generator(np.random.Philox(0))
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: (generator.standard_normal(shape, np.float32) * np.float32(0.02)).astype(
                np.float16
            )
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return 4e-6 * sum(np.prod(shape) for shapes in shards for shape in shapes.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_holds_less_than_two_copies(tmp_path: Path) -> None:
    size = write_shards(tmp_path / "large", CONFIG)
    small = CONFIG | {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 100}
    write_shards(tmp_path / "small", small)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WORKER,
            *map(str, (tmp_path / "small", tmp_path / "large", tmp_path)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    growth = float(done.stdout.splitlines()[-1])
    assert 290 < size < 300
    assert growth < 1.75 * size, f"{growth:.0f} MB for {size:.0f} MB of weights"
