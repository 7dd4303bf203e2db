"""What scoring options takes, each read whole or all after a prompt that they share.

python benchmarks/options.py MODEL copa=copa/test.jsonl:32 banking77=banking77/test.jsonl:24
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import numpy as np

import edgezo
from edgezo.data.batches import eval_batches
from edgezo.tasks import load_prompt, read_data, task_of
from edgezo.tasks.prompts import names
from edgezo_runtime.batch import Batch
from edgezo_runtime.model import Model
from edgezo_runtime.shared import Shared


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", nargs=-1, required=True)
def main(bundle: Path, data: tuple[str, ...]) -> None:
    """Count tokens and seconds of CPU, on one thread, for NAME=FILE:ROWS.

    A name of the catalogue of prompts brings its prompt.
    """
    model = edgezo.load(bundle, threads=1)
    for item in data:
        name, file, count = item.replace(":", "=").split("=")
        batches = _batches(model, name, Path(file), int(count))
        plain, shared = _Total(), _Total()
        worst = 0.0
        for batch in batches:
            cut = Shared.of(batch, gain=0)
            assert cut is not None and model.options is not None
            started = time.process_time()
            expected = model._session.start(batch)()["logprobs"]  # pyright: ignore[reportPrivateUsage]
            middle = time.process_time()
            found = model.options.score(cut)["logprobs"]
            plain.add(batch.input_ids.size, middle - started)
            read = sum(reading.tokens.size for reading in cut.readings) + cut.prompts.size
            shared.add(read, time.process_time() - middle)
            worst = max(worst, float(np.abs(found - expected).max()))
        chosen = sum(Shared.of(batch) is not None for batch in batches)
        click.echo(
            f"{name}, {count}: {plain.tokens:,}, {shared.tokens:,} tokens; {plain.seconds:.1f} s, "
            f"{shared.seconds:.1f} s, {plain.seconds / shared.seconds:.1f} x; largest difference "
            f"{worst:.1e}; {chosen} of {len(batches)} batches are shared"
        )


class _Total:
    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds


def _batches(model: Model, name: str, file: Path, count: int) -> list[Batch]:
    prompt = load_prompt(name if name in names() else None, model.form["kind"])
    rows = read_data(file, model, prompt)
    task = task_of(model, rows, prompt)
    examples = list(itertools.islice(task.encode_rows(rows), count))
    return [batch for _, batch in eval_batches(task, examples, 16) if isinstance(batch, Batch)]


if __name__ == "__main__":
    main()
