"""The order of rows, and the batches of a stream."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers_text import SmallModel, small_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgezo.data import BatchPlan, eval_batches, rows_from
from edgezo.data.stream import batches
from edgezo.tasks import make_task
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.errors import InputError

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)
ROWS = [{"text": "good film " * (1 + i % 7), "label": i % 2} for i in range(45)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return SmallModel(small_tokenizer(tmp_path_factory.mktemp("model")))


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 3))
def test_an_epoch_shows_every_example_once(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    plan = BatchPlan(lengths, batch_size, seed)
    size, steps = min(batch_size, len(lengths)), plan.steps_per_epoch
    epoch_batches = [plan.indices(epoch * steps + step) for step in range(1, steps + 1)]
    assert steps == -(-len(lengths) // size)
    for batch in epoch_batches:
        assert batch.shape == (size,) and batch.dtype == np.int64
        assert len(set(batch.tolist())) == size
    counts = np.bincount(np.concatenate(epoch_batches), minlength=len(lengths))
    assert counts.min() == 1
    assert counts.sum() == steps * size


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**64 - 1), st.data())
def test_a_step_depends_on_nothing_before_it(
    lengths: list[int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    plan = BatchPlan(lengths, batch_size, seed)
    for step in data.draw(st.lists(st.integers(1, 50), max_size=5)):
        fresh = BatchPlan(lengths, batch_size, seed)
        np.testing.assert_array_equal(plan.indices(step), fresh.indices(step))


def test_order_is_fixed_for_all_time() -> None:
    plan = BatchPlan([5, 3, 8, 1, 9, 2, 7], 3, seed=1)
    got = [plan.indices(step).tolist() for step in (1, 2, 3, 4)]
    assert got == [[0, 6, 2], [3, 4, 5], [5, 1, 4], [5, 0, 4]]


def test_seeds_and_epochs_differ() -> None:
    lengths = np.arange(1000) % 50
    first = BatchPlan(lengths, 16, 0)
    other_epoch = first.indices(1 + first.steps_per_epoch)
    assert first.indices(1).tolist() != BatchPlan(lengths, 16, 1).indices(1).tolist()
    assert first.indices(1).tolist() != other_epoch.tolist()


def test_little_is_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 0.6, 5000).astype(np.int64) + 1
    plan = BatchPlan(lengths, 16, 0)
    chosen = [lengths[plan.indices(step)] for step in range(1, plan.steps_per_epoch + 1)]
    padded = sum(batch.max() * len(batch) for batch in chosen)
    assert padded <= 1.1 * sum(batch.sum() for batch in chosen)


def test_batches_do_not_come_by_length() -> None:
    plan = BatchPlan(np.arange(512), 16, 0)
    longest = [int(plan.indices(step).max()) for step in range(1, 33)]
    assert longest != sorted(longest) and abs(np.corrcoef(longest, range(32))[0, 1]) < 0.5


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="no examples"):
        BatchPlan([], 4, 0)
    with pytest.raises(InputError, match="batch size is 0"):
        BatchPlan([1], 0, 0)
    with pytest.raises(InputError, match="steps count from 1"):
        BatchPlan([1], 1, 0).indices(0)


def test_evaluation_is_sorted_and_its_order_restorable(model: SmallModel) -> None:
    rows = rows_from(ROWS)
    task = make_task(None, rows, model.tokenizer, model.context_length, label_words="bad,good")
    examples = task.encode_rows(rows)
    labels = np.full(len(rows), -1)
    widths = []
    for indices, batch in eval_batches(task, examples, 16):
        assert isinstance(batch.objective, CandidateLoss)
        labels[indices] = batch.objective.labels
        assert isinstance(batch, Batch)
        widths.append(batch.input_ids.shape[1])
    assert labels.tolist() == [row["label"] for row in ROWS]
    assert widths == sorted(widths) and len(widths) == 3


def test_stream_of_a_file_and_of_rows(model: SmallModel, tmp_path: Path) -> None:
    import json

    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    from_file = list(batches(path, model, seed=3, label_words="bad,good"))
    from_rows = list(batches(ROWS, model, seed=3, label_words="bad,good"))
    assert len(from_file) == len(from_rows) == 3
    for one, other in zip(from_file, from_rows, strict=True):
        assert isinstance(one, Batch) and isinstance(other, Batch)
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
    assert len(list(batches(ROWS, model, epochs=2))) == 6
    assert len(list(itertools.islice(batches(ROWS, model, epochs=None), 20))) == 20


def test_stream_keeps_a_task_made_before(model: SmallModel) -> None:
    train = rows_from(ROWS)
    task = make_task("classify", train, model.tokenizer, 64)
    only_ones = [row for row in ROWS if row["label"] == 1]
    (batch, *_) = batches(only_ones, model, task=task)
    assert isinstance(batch.objective, CandidateLoss)
    assert set(batch.objective.labels.tolist()) == {1}


def test_stream_complains_before_its_first_batch(model: SmallModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        batches(tmp_path / "none.jsonl", model)
