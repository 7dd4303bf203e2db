"""Tunes magika, a file-type classifier published as an ONNX file, to fragments of 200 bytes.

Everything goes through the command line: export, eval, train. The model's folder holds `model.onnx`
and `config.min.json`, as the `magika` package has them; the data's `train.jsonl` and `test.jsonl`
have rows of `bytes_b64` and `label_text`.

python benchmarks/magika.py DATA MODEL [--record]
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recording import record

HEAD = "*/Const_24:0,*/Dense_1/*"  # the last matrix and its bias
#: About equal times: a head's samples share the passes through what is frozen.
RUNS: dict[str, dict[str, Any]] = {
    "head, es": {
        "tune": HEAD, "method": "es", "samples": 64, "lr": 1e-2, "steps": 55, "batch-size": 32,
    },
    "head, mezo": {"tune": HEAD, "method": "mezo", "lr": 1e-3, "steps": 60, "batch-size": 32},
    "full, es": {"method": "es", "samples": 8, "lr": 1e-3, "steps": 20, "batch-size": 16},
}  # fmt: skip


def main() -> None:
    """Exports, measures, tunes in each way and measures again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.min.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "test"):
            write_features(arguments.data / f"{part}.jsonl", folder / f"{part}.npz", config)
        (folder / "labels.txt").write_text("\n".join(config["target_labels_space"]))
        bundle, test = folder / "magika.edgezo", folder / "test.npz"
        exported = edgezo(
            "export", arguments.model / "model.onnx", "--out", bundle,
            "--labels", folder / "labels.txt",
        )  # fmt: skip
        results: dict[str, Any] = {
            "trained_tensors": exported["trained"],
            "difference": exported["difference"],
            "before": edgezo("eval", bundle, "--data", test),
            "runs": {},
        }
        print("before", results["before"], flush=True)
        for title, settings in RUNS.items():
            flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
            out = folder / title.replace(", ", "-")
            trained = edgezo(
                "train", bundle, "--data", folder / "train.npz", "--eval-data", test,
                "--out", out, *flags,
            )  # fmt: skip
            results["runs"][title] = {"settings": settings, **trained}
            del results["runs"][title]["run_dir"]
            print(title, results["runs"][title], flush=True)
    if arguments.record:
        record("magika", results, ("onnx",))


def write_features(source: Path, target: Path, config: dict[str, Any]) -> None:
    """Writes what magika reads of each fragment: its first bytes, then its last, padded."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    features = np.full(
        (len(rows), config["beg_size"] + config["end_size"]), config["padding_token"], np.int32
    )
    for feature, row in zip(features, rows, strict=True):
        content = base64.b64decode(row["bytes_b64"]).strip()
        first, last = content[: config["beg_size"]], content[-config["end_size"] :]
        feature[: len(first)] = list(first)
        feature[len(feature) - len(last) :] = list(last)
    np.savez(target, bytes=features, label=np.array([row["label_text"] for row in rows]))


def edgezo(*words: object) -> dict[str, Any]:
    """Runs a command and returns what it prints with --json."""
    command = [sys.executable, "-m", "edgezo", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
