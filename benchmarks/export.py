"""Seconds and peak memory of exports, over checkpoints of realistic shapes with random weights.

python benchmarks/export.py [--shape NAME] [--via torch|optimum] [--record]

Each export runs in a process of its own. Prints JSON; memory is the largest resident size, mapped
files included, in MB of a million bytes, without what Python and its packages took before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

import click
from recording import record

SHAPES = {
    "smollm2-135m": (
        "LlamaForCausalLM",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "opt-125m": ("OPTForCausalLM", {}),  # transformers' defaults
    "bert-base": ("BertForMaskedLM", {}),
}
WAYS = (
    ("opt-125m", "torch"),
    ("opt-125m", "optimum"),
    ("bert-base", "torch"),
    ("smollm2-135m", "torch"),
    ("smollm2-135m", "optimum"),
)
_MAKE = """
import sys, transformers
name, config, out = sys.argv[1:]
cls = getattr(transformers, name)
import json
cls(cls.config_class(**json.loads(config))).save_pretrained(out)
"""
_EXPORT = """
import resource, sys, time
from pathlib import Path
from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.quiet import quiet
if sys.argv[3] == "optimum":
    with quiet():
        import optimum.exporters.onnx

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6

before, started, worked = peak(), time.perf_counter(), time.process_time()
out = checkpoint_to_bundle(Path(sys.argv[1]), Path(sys.argv[2]), via=sys.argv[3])
seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
weights = (out / "model.safetensors").stat().st_size / 1e6
print(round(seconds, 1), round(cpu_seconds, 1), round(peak() - before), round(weights))
"""


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), help="[default: all]")
@click.option("--via", type=click.Choice(["torch", "optimum"]), help="[default: both]")
@click.option("--record", "keep", is_flag=True, help="Write benchmarks/results/export.json.")
def main(shape: str | None, via: str | None, keep: bool) -> None:
    """Measure what exports take."""
    results = []
    for name, way in WAYS:
        if shape in (None, name) and via in (None, way):
            results.append(measured(name, way))
            click.echo(json.dumps(results[-1]), err=True)
    if keep:
        record("export", results, ("torch", "transformers", "optimum-onnx", "onnxscript"))
    click.echo(json.dumps(results))


def measured(name: str, via: str) -> dict[str, Any]:
    """Returns the seconds and the memory of one export."""
    architecture, config = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        source, out = f"{scratch}/source", f"{scratch}/b.edgezo"
        _run(_MAKE, architecture, json.dumps(config), source)
        seconds, cpu_seconds, peak, weights = map(float, _run(_EXPORT, source, out, via).split())
    return {
        "shape": name,
        "via": via,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": int(peak),
        "weights_mb": int(weights),
        "copies": round(peak / weights, 2),
    }


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1] if done.stdout else ""


if __name__ == "__main__":
    main()
