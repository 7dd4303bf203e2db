"""Runs `edgezo demo`, shows what it printed, and with --record keeps it and draws its figure.

python benchmarks/demo.py [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from recording import record

from edgezo.run_folder import RunFolder

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"
_WINDOW = 40  # steps that the shown loss is averaged over


def main() -> None:
    """Runs the demo in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = subprocess.run(
            [sys.executable, "-m", "edgezo", "demo", "--out", str(out), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(done.stdout, end="")
        if arguments.record:
            found = json.loads(done.stdout.splitlines()[-1])
            del found["run_dir"]
            record("demo", found)
            draw(RunFolder(out).read_metrics(), found["accuracy_before"])


def draw(metrics: list[dict[str, Any]], before: float) -> None:
    """Draws loss and held-out accuracy over the steps."""
    losses = [line["loss"] for line in metrics if "loss" in line]
    evaluations = [(line["step"], line["eval"]["accuracy"]) for line in metrics if "eval" in line]
    smooth = [
        sum(losses[max(0, end - _WINDOW) : end]) / len(losses[max(0, end - _WINDOW) : end])
        for end in range(1, len(losses) + 1)
    ]
    style: Any = {"font.size": 9, "svg.hashsalt": "edgezo", "axes.spines.top": False}
    with pyplot.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
        left.plot(losses, color="#9ecae1", linewidth=0.6)
        left.plot(smooth, color="#08519c")
        left.set(xlabel="step", ylabel="training loss (nats)")
        steps, accuracies = zip((0, before), *evaluations, strict=True)
        right.plot(steps, [100 * a for a in accuracies], "o-", color="#a63603")
        right.set(xlabel="step", ylabel="held-out accuracy (%)", ylim=(0, 100))
        figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
