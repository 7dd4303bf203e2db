"""Seconds and peak memory of exports, over checkpoints of realistic shapes with random weights.

python benchmarks/export.py [--shape NAME] [--record]

Each export runs in a process of its own. Prints JSON, and with --record writes it to the results
and as a table to docs/export.md; memory is the largest resident size, mapped
files included, in MB of a million bytes, without what Python and its packages took before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from recording import FOLDER, record

from edgezo_runtime.files import write_text

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
    "gpt2": ("GPT2LMHeadModel", {}),
    "bert-base": ("BertForMaskedLM", {}),
    "t5-small": ("T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
}
#: A shape and what `edgezo export` is told.
WAYS = (
    ("smollm2-135m", "--via torch"),
    ("smollm2-135m", "--via optimum"),
    ("smollm2-135m", "--via torch --tune lora"),
    ("smollm2-135m", "--via torch --tune prefix"),
    ("smollm2-135m", "--via torch --tune prompt"),
    ("smollm2-135m", "--via torch --quantize int4"),
    ("smollm2-135m", "--via torch --quantize int8"),
    ("opt-125m", "--via torch"),
    ("opt-125m", "--via optimum"),
    ("gpt2", "--via torch"),
    ("gpt2", "--via optimum"),
    ("bert-base", "--via torch"),
    ("t5-small", "--via torch"),
)
PAGE = FOLDER.parent / "docs" / "export.md"
#: What stands around the table in the page.
MARKS = ("<!-- the table of benchmarks/export.py -->\n", "<!-- its end -->\n")
_MAKE = """
import json, sys, transformers
name, config, out = sys.argv[1:]
cls = getattr(transformers, name)
cls(cls.config_class(**json.loads(config))).save_pretrained(out)
"""
_EXPORT = """
import logging, resource, sys, time
from pathlib import Path
import edgezo_export.adapters.base, edgezo_export.huggingface, edgezo_export.quantize
from edgezo.cli import cli
from edgezo_export.quiet import quiet
logging.getLogger().setLevel("WARNING")  # the quantiser's import sets it to INFO
source, out, *flags = sys.argv[1:]
if "optimum" in flags:
    with quiet():
        import optimum.exporters.onnx

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6

before, started, worked = peak(), time.perf_counter(), time.process_time()
cli(["export", source, "--out", out, *flags], standalone_mode=False)
seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
print(round(seconds, 1), round(cpu_seconds, 1), round(peak() - before))
"""


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), help="[default: all]")
@click.option("--record", "keep", is_flag=True, help="Write results/export.json and the docs.")
def main(shape: str | None, keep: bool) -> None:
    """Measure what exports take."""
    results = []
    for name, flags in WAYS:
        if shape in (None, name):
            results.append(measured(name, flags))
            click.echo(json.dumps(results[-1]), err=True)
    if keep:
        record("export", results, ("torch", "transformers", "optimum-onnx", "onnxscript"))
        put_table(results)
    click.echo(json.dumps(results))


def measured(name: str, flags: str) -> dict[str, Any]:
    """Returns the seconds and the memory of one export."""
    architecture, config = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        source, out = f"{scratch}/source", f"{scratch}/b.edgezo"
        _run(_MAKE, architecture, json.dumps(config), source)
        checkpoint = (Path(source) / "model.safetensors").stat().st_size / 1e6
        seconds, cpu_seconds, peak = map(float, _run(_EXPORT, source, out, *flags.split()).split())
    return {
        "shape": name,
        "flags": flags,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": int(peak),
        "checkpoint_mb": round(checkpoint),
        "copies": round(peak / checkpoint, 2),
    }


def put_table(results: list[dict[str, Any]]) -> None:
    """Writes `results` between the marks of docs/export.md."""
    lines = [
        "| shape | checkpoint | `edgezo export` | seconds | growth | copies |",
        "|---|---|---|---|---|---|",
    ]
    row = "| {shape} | {checkpoint_mb} MB | `{flags}` | {seconds:.0f} | {peak_mb} MB | {copies} |"
    lines += [row.format(**result) for result in results]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    table = "\n".join(lines) + "\n"
    write_text(PAGE, before + MARKS[0] + table + MARKS[1] + after)


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1] if done.stdout else ""


if __name__ == "__main__":
    main()
