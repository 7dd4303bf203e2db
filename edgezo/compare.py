"""Methods x tasks x seeds: many runs on one footing, and a table of what they reached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezo import baselines
from edgezo.adapted import AddAdapter, open_adapted
from edgezo.baselines import ZERO_SHOT, Baseline, baseline_of
from edgezo.bench.machine import commit, describe_machine
from edgezo.callbacks import Callback
from edgezo.compare_rows import keep, read
from edgezo.evaluate import Metrics
from edgezo.recipe import complete
from edgezo.run_folder import RunFolder, is_run
from edgezo.settings import AUTO, RunSettings, Settings
from edgezo.tasks import task_of_run
from edgezo.tasks.prompts import names
from edgezo.train import Result, check_method, resume, train
from edgezo.training_data import draw_held_out, evaluate_held_out
from edgezo.tuned import open_tuned
from edgezo.unchanged import check_unchanged
from edgezo_runtime import journal
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.required import check_graph
from edgezo_runtime.methods import METHODS

#: The line of the table without a method of its own: what `edgezo train` does by default.
DEFAULT = "default"
BASELINE = "baseline"
#: What an evaluation is judged by: the first of these that it has.
SCORES = ("accuracy", "f1", "em")
#: Settings that say where things lie, and not what is compared.
PLACES = ("bundle", "data", "eval_data", "out", "seed", "device", "threads")


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        task: the task's name.
        method: its line's.
        settings: of the run, or of the baseline.
        baseline: which one it is, if any.
        tested: where a task has test rows, the settings with these as the held-out ones, which the
            run's row is of; the run's own choose its best evaluation.
    """

    task: str
    method: str
    settings: RunSettings
    baseline: Baseline | None = None
    tested: RunSettings | None = None

    @property
    def compared(self) -> dict[str, Any]:
        """The settings but for seed and places; of a baseline those that it depends on."""
        values = _compared(self.settings.to_dict())
        if self.baseline is None:
            return values | self.test
        kept = self.test | {
            name: value for name, value in values.items() if name in baselines.SETTINGS
        }
        return {"baseline": self.baseline.name, "in_context": self.baseline.in_context} | kept

    @property
    def judged(self) -> RunSettings:
        """The settings whose held-out rows the score is of."""
        return self.tested or self.settings

    @property
    def reads(self) -> list[tuple[str, RunSettings]]:
        """What its files are for, and the settings that name them."""
        tested = [(f"{self.task} test", self.tested)] if self.tested else []
        return [(self.task, self.settings), *tested]

    @property
    def test(self) -> dict[str, Any]:
        """What tells a run with test rows from one without."""
        return {"test_examples": self.tested.eval_examples} if self.tested else {}

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Tells its row from those of other runs."""
        return self.task, self.method, self.settings.seed, self.settings_id

    @property
    def settings_id(self) -> str:
        """Names the settings but for seed and places."""
        text = json.dumps(self.compared, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan(
    bundle: str,
    tasks: Mapping[str, Mapping[str, Any]],
    methods: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    out: Path,
) -> list[Run]:
    """Returns the runs of a comparison, seeds innermost; of each task first the untuned model.

    Args:
        bundle: what every run tunes.
        tasks: settings of each task: ``data`` and ``eval_data``, and what is its own. A name of the
            catalogue of prompts brings its prompt. With ``test_data``, of which ``test_examples``
            are drawn, rows are judged by these and `eval_data` only chooses what is kept.
        methods: settings of each line of the table: ``method`` if it is not its name, a learning
            rate, and so on. The line ``default`` is the recipe of a run without a method; of the
            `baselines.NAMES` ``icl`` has the setting ``in_context``.
        seeds: of the runs.
        settings: of all runs.
        out: each run's folder is ``out/TASK/METHOD/seed-N``.

    Raises:
        InputError: a setting is wrong, or a task has no held-out rows.
    """
    runs = []
    graphs = set()
    for name in (*tasks, *methods):
        if Path(name).name != name or name == "..":
            raise InputError(
                f"{name!r} is to name a folder of the comparison: take a name without / and dots"
            )
    for task, given in tasks.items():
        of_task = dict(given)
        test_data, count = of_task.pop("test_data", None), of_task.pop("test_examples", None)
        if count is not None and test_data is None:
            raise InputError(f"task {task} has no test rows to draw {count} of: give test_data")
        known = {"prompt": task} if task in names() else {}
        for method, of_method in {ZERO_SHOT: {}, **methods}.items():
            own = dict(of_method)
            called = own.pop("method", None if method == DEFAULT else method)
            baseline = None
            if called in baselines.NAMES:
                baseline, called = baseline_of(called, own.pop("in_context", None)), None
            values = {**settings, **known, **of_task, **own, "bundle": bundle, "method": called}
            for seed in dict.fromkeys(seeds):
                values |= {"out": str(out / task / method / f"seed-{seed}"), "seed": seed}
                source = f"{task} {method}"
                made = complete(Settings.from_dict(values, source))
                tested = None
                if test_data is not None:
                    test = {"eval_data": test_data, "eval_examples": count}
                    tested = RunSettings.from_dict(made.to_dict() | test, source)
                if made.method not in METHODS:
                    raise InputError(
                        f"method {made.method!r} is unknown; use one of "
                        + ", ".join((DEFAULT, *METHODS, *baselines.NAMES))
                    )
                check_method(made)
                if graph := METHODS[made.method].graph:
                    graphs.add((made.bundle, made.device, made.threads, graph))
                if not (made.eval_data or made.eval_examples):
                    raise InputError(
                        f"task {task} has no rows to evaluate on; write it as "
                        f"{task}=TRAIN.jsonl:DEV.jsonl, or give eval_examples"
                    )
                for path in filter(None, (made.data, made.eval_data, test_data)):
                    if not Path(path).is_file():
                        raise InputError(f"task {task} has no file {path}: give the path of one")
                run = Run(task, method, made, baseline, tested)
                runs.append(run)
                if method == ZERO_SHOT and run.judged.eval_data:
                    break  # the same for every seed
    for folder, device, threads, graph in graphs:
        check_graph(open_bundle(folder), open_device(device, threads), graph)
    return runs


def compare(
    runs: Sequence[Run],
    out: Path,
    watch: Callable[[Run], contextlib.AbstractContextManager[Callback]],
    add: AddAdapter | None = None,
    keep_weights: bool = False,
    memory: Callable[[Run], float | None] = lambda run: None,
) -> Iterator[dict[str, Any]]:
    """Yields the row of each run as they get done; of a baseline that a task has not there is none.

    Rows are kept in ``out/results.jsonl``: what is there already is not run again, and a run that
    was stopped goes on. The yielding ends where a run is stopped.

    Args:
        runs: of `plan`.
        out: the comparison's folder.
        watch: makes what watches a run.
        add: puts a run's adapter into the bundle, where it has none.
        keep_weights: leave the tuned weights and snapshots in each run's folder; `edgezo resume`
            makes the weights again, from the journal or by training.
        memory: measures a run's memory over that of inference, once for all seeds.

    Raises:
        InputError: a run's folder holds a run with other settings; bad data or settings; data or a
            bundle that changed since the first run.
        EdgezoError: a run failed, or the disk is full.
    """
    done = {(row["task"], row["method"], row["seed"], row["settings_id"]): row for row in read(out)}
    ratios = {(row["task"], row["settings_id"]): row["memory_ratio"] for row in done.values()}
    _check_adapters([run for run in runs if run.key not in done], add)
    check_unchanged(out, (read for run in runs for read in run.reads))
    code = commit()
    machine = describe_machine()
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    for run in runs:
        if run.key not in done:
            result = None
            if run.baseline:
                measured = run.baseline.measure(run.judged)
                if measured is None:
                    continue
                row = _fields(run, BASELINE) | measured | {"run": None}
            else:
                with watch(run) as callback:
                    result = advance(run.settings, callback, add)
                if not result.finished:
                    return
                judged = _test(result.run, run.tested, add) if run.tested else result.metrics
                row = _row(run, result, judged, out)
            settings = (run.task, run.settings_id)
            if ratios.get(settings) is None:
                ratios[settings] = memory(run)
            device = run.settings.device
            row |= {"memory_ratio": ratios[settings], "commit": code}
            done[run.key] = keep(out, row | {"device": cpu if device == "cpu" else device})
            if result and not keep_weights:
                result.run.drop_weights()
        yield done[run.key]


def _check_adapters(runs: Sequence[Run], add: AddAdapter | None) -> None:
    """Hears of an adapter that cannot be had before the first run, not in the middle."""
    tuned = (run.settings for run in runs if run.baseline is None)
    asked = {repr((one.bundle, one.adapter())): one for one in tuned if one.adapter()}
    for one in asked.values():
        open_adapted(one.bundle, one.adapter(), add)


def advance(settings: Settings, callback: Callback, add: AddAdapter | None) -> Result:
    """Begins the run of `settings`, or goes on with the one in its folder.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    if not is_run(Path(settings.out)):
        return train(settings, callback, add=add)
    check_same(settings)
    return resume(settings.out, callback, add)


def check_same(settings: Settings) -> None:
    """Raises InputError if the run in the folder of `settings` has others."""
    found = RunFolder(settings.out).read_settings()
    for name, value in settings.to_dict().items():
        if value is None or name in ("out", "device", "threads", "tune", "prompt"):
            continue
        wanted = str(Path(value).resolve()) if name in ("bundle", "data", "eval_data") else value
        if value != AUTO and not _alike(found.get(name), wanted):
            raise InputError(
                f"{settings.out} holds a run whose {name} is {found.get(name)!r}, not {value!r}: "
                "choose another --out, or remove it"
            )


def _alike(found: Any, wanted: Any) -> bool:
    """Whether a kept setting is what is wanted; a method's options may be numbers as text."""
    if isinstance(wanted, dict):
        given = found if isinstance(found, dict) else {}
        return all(name in given and _alike(given[name], value) for name, value in wanted.items())
    if isinstance(wanted, str) and isinstance(found, float | int):
        with contextlib.suppress(ValueError):
            return float(wanted) == float(found)
    return found == wanted


def score_of(row: Mapping[str, Any]) -> tuple[str, float]:
    """Returns what a row, or an evaluation, is judged by, and how much of it there is."""
    for name in SCORES:
        if row.get(name) is not None:
            return name, float(row[name])
    loss = row.get("loss")
    return "loss", float("nan") if loss is None else float(loss)


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the lines of the results: a heading, then one for each task and method."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"], row["settings_id"]), []).append(row)
    lines = [("task", "method", "seeds", "forwards", "seconds", "memory", "score", "")]
    for (task, method, _), group in groups.items():
        name, _ = score_of(group[0])
        values = [score_of(row)[1] for row in group]
        scale, unit = (1, "") if name == "loss" else (100, " %")
        shown = f"{scale * statistics.fmean(values):.{3 if name == 'loss' else 1}f}"
        if len(values) > 1:
            shown += f" ± {scale * statistics.stdev(values):.{3 if name == 'loss' else 1}f}"
        memory = group[0].get("memory_ratio")
        lines.append(
            (
                task,
                method,
                str(len(group)),
                f"{group[0]['forwards']:,}",
                f"{statistics.fmean(row['seconds'] for row in group):,.0f}",
                "" if memory is None else f"{memory:.2f} x",
                shown + unit,
                name,
            )
        )
    return lines


def family_of(method: str) -> str:
    """Returns which methods a method is compared with."""
    return getattr(METHODS[method], "family", "forward-only")


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in PLACES}


def _row(run: Run, result: Result, judged: Metrics | None, out: Path) -> dict[str, Any]:
    """Returns the row of a finished run; `examples` are those that it was trained on."""
    lines = [line for line in result.run.read_metrics() if "forwards" in line]
    found = _fields(run, family_of(run.settings.method))
    metrics = judged.to_json() if judged else {}
    return (
        found
        | metrics
        | {
            "settings": _compared(result.run.read_settings()) | run.test,
            "examples": result.examples,
            "forwards": sum(line["forwards"] for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines), 2),
            "run": result.run.path.relative_to(out).as_posix(),
        }
    )


def _test(run: RunFolder, settings: RunSettings, add: AddAdapter | None) -> Metrics:
    """Evaluates a finished run on the held-out rows of `settings`."""
    model, _ = open_tuned(run.path, add, settings.device, settings.threads)
    rows = draw_held_out(model, settings)
    # The run's own: the training rows say which labels there are, and a start from a probe gives
    # them tokens of their own.
    task = task_of_run(model, journal.read(run.journal).header["task"])
    return evaluate_held_out(model, task, task.encode_rows(rows), rows, settings)


def _fields(run: Run, family: str) -> dict[str, Any]:
    rows = run.judged.eval_data
    return {
        "task": run.task,
        "split": "train" if rows is None else Path(rows).stem,
        "method": run.method,
        "family": family,
        "settings_id": run.settings_id,
        "settings": run.compared,
        "seed": run.settings.seed,
        "batch": run.settings.batch_size,
        "accuracy": None,
    }
