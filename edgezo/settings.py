"""The settings of a run: flags override a YAML file, which overrides the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from edgezo_runtime.errors import InputError
from edgezo_runtime.prefix_cache import PRECISIONS
from edgezo_runtime.select import ADAPTERS, FULL

KEEP = ("last", "best")
BASE, PROBE = "base", "probe"
START = (BASE, PROBE, "auto")
METHOD_SETTINGS = ("eps", "weight_decay", "samples")  # those with a name of their own here
AUTO = "auto"
ADAPTER_SETTINGS = ("rank", "alpha", "target", "rslora", "virtual_tokens")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run does; `edgezo.recipe.complete` chooses what is open.

    Attributes:
        bundle: the base bundle.
        data: training rows, JSONL; of arrays also `.npz`.
        eval_data: held-out rows, likewise, or None.
        examples: draw so many training rows by the seed; None: take all.
        shots: draw so many training rows of each label; None: take all.
        eval_examples: draw so many held-out rows, of `eval_data` or else of the training rows that
            are left; None: all of `eval_data`.
        out: the RUN folder.
        prompt: a name of the catalogue, or a YAML file; what is given besides wins.
        task: ``"classify"``, ``"choice"``, ``"masked"``, ``"head"``, ``"generate"``, ``"chat"`` or
            ``"text"``; None: by the model and the data's columns.
        template: the prompt, with columns in braces; None: the task's own.
        label_words: the word for each label, in the labels' order; None: from the data.
        tune: what is trained: ``"full"``, an adapter, or words and patterns of parameter names
            with commas between them; see `edgezo_runtime.select`. None: as the recipe says, or
            everything where a method is named.
        rank: of LoRA; None: 8.
        alpha: of LoRA; None: 16.
        target: LoRA's modules by the last parts of their names, or by patterns, or ``all-linear``;
            None: those of attention that PEFT adapts.
        rslora: scale LoRA by ``alpha / sqrt(rank)``.
        virtual_tokens: length of a prefix (None: 5) or a prompt (None: 10).
        start: ``"base"``; ``"probe"``: the labels' rows of the last matrix are first fitted on the
            base's features, see `edgezo.head_start`; or ``"auto"``: that where it can be, and
            predicts rows better that it was not fitted on.
        objective: what a step lowers; see `edgezo.objectives.batch_maker`. None: the recipe's, or
            the task's own loss where a method is named.
        metric: what held-out answers are judged by besides: ``"em"``, ``"f1"`` or ``"em,f1"`` of
            generated text, ``"f1"`` of labels; None: the objective's, if it is one of these.
        max_tokens: longest answer, where generated text is judged.
        method: a name from `edgezo methods`; None: the recipe's, with its settings.
        options: the method's other settings by name, as `edgezo methods` lists them.
        steps: number of steps; None: the recipe's, or 1000 where a method is named.
        batch_size: rows per step.
        micro_batch: rows per pass, to which a step's are cut for less memory; None: all at once.
        lr: learning rate of the first step, or ``"auto"``: found on the first batches; None: the
            recipe's, or the method's default.
        schedule: how the learning rate goes on.
        eps: perturbation scale; None: likewise.
        weight_decay: decoupled, for matrices.
        samples: directions per step, for methods that have several; None: likewise.
        zo_batch_size: of Addax, rows a step of its estimate; None: `batch_size`.
        length_limit: of Addax, the longest rows that true gradients are taken of, in tokens; None:
            the median.
        seed: names every random choice.
        eval_every: steps between evaluations; 0: only at the end.
        keep: the weights to save: ``"last"``, or those of the ``"best"`` evaluation.
        prefix_cache: precision in which the outputs of the frozen lower layers are kept on disk,
            ``"float32"`` or ``"float16"``; None: they are computed in every step.
        snapshot_every: steps between snapshots; 0: none.
        device: what it runs on: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` for the second card, or
            ``"cuda-offload"`` for a model that does not fit on it.
        threads: of ONNX Runtime and the sweeps; None: all cores.
    """

    bundle: str
    data: str
    out: str
    eval_data: str | None = None
    examples: int | None = None
    shots: int | None = None
    eval_examples: int | None = None
    prompt: str | None = None
    task: str | None = None
    template: str | None = None
    label_words: tuple[str, ...] | None = None
    tune: str | None = None
    rank: int | None = None
    alpha: float | None = None
    target: tuple[str, ...] | None = None
    rslora: bool | None = None
    virtual_tokens: int | None = None
    start: str | None = None
    objective: str | None = None
    metric: str | None = None
    max_tokens: int = 32
    method: str | None = None
    options: dict[str, Any] | None = None
    steps: int | None = None
    batch_size: int = 16
    micro_batch: int | None = None
    lr: float | str | None = None
    schedule: str = "linear"
    eps: float | None = None
    weight_decay: float = 0.0
    samples: int | None = None
    zo_batch_size: int | None = None
    length_limit: int | None = None
    seed: int = 0
    eval_every: int = 0
    keep: str = "last"
    prefix_cache: str | None = None
    snapshot_every: int = 0
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (
            ("steps", 1),
            ("batch_size", 1),
            ("micro_batch", 1),
            ("zo_batch_size", 1),
            ("length_limit", 1),
            ("eval_every", 0),
            ("snapshot_every", 0),
            ("threads", 1),
            ("examples", 1),
            ("shots", 1),
            ("eval_examples", 1),
            ("max_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{name} is {value}; use a whole number from {lowest} on")
        if self.start is not None and self.start not in START:
            raise InputError(f"start is {self.start!r}; use {' or '.join(START)}")
        if self.prefix_cache is not None and self.prefix_cache not in PRECISIONS:
            raise InputError(
                f"prefix_cache is {self.prefix_cache!r}; use {' or '.join(PRECISIONS)}"
            )
        if self.keep not in KEEP:
            raise InputError(f"keep is {self.keep!r}; use {' or '.join(KEEP)}")
        held_out = self.eval_data or self.eval_examples
        if self.eval_every and not held_out:
            raise InputError(
                f"eval_every is {self.eval_every}, and there are no held-out rows to evaluate on: "
                "give eval_data or eval_examples"
            )
        if self.keep == "best" and not (self.eval_every and held_out):
            raise InputError(
                "keep is best, which needs evaluations: give eval_every, and eval_data or "
                "eval_examples"
            )

    @property
    def rows(self) -> int:
        """Rows per pass."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def adapter(self) -> dict[str, Any] | None:
        """Returns the adapter that is asked for: its kind, and the settings that are given."""
        return adapter_request(
            self.tune or FULL, {name: getattr(self, name) for name in ADAPTER_SETTINGS}
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values, as `settings.yaml` holds them."""
        values = dataclasses.asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @classmethod
    def resolve(cls, flags: Mapping[str, Any], config: Path | None = None) -> Self:
        """Merges `flags` (None: not given) over the YAML file `config` over the defaults.

        Raises:
            InputError: an unknown setting, a value of the wrong type, or one that is missing.
        """
        values = _read_yaml(config) if config else {}
        given = {name: value for name, value in flags.items() if value is not None}
        if isinstance(values.get("options"), dict) and "options" in given:
            given["options"] = values["options"] | given["options"]
        values |= given
        return cls.from_dict(values, str(config) if config else "the command line")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> Self:
        """Makes settings of plain `values`; `source` is named in errors."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        clean: dict[str, Any] = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(
                    f"{source} has a setting {name!r} that there is none of; there are "
                    + ", ".join(fields)
                )
            if value is not None:
                clean[name] = _typed(name, value, str(fields[name].type), source)
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and clean.get(name) is None:
                flag = "BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}"
                raise InputError(f"{name} is missing: give {flag}")
        return cls(**clean)


@dataclass(frozen=True)
class RunSettings(Settings):
    """Settings of a run, with nothing left open; the defaults are those of a named method."""

    tune: str = FULL
    objective: str = "loss"
    method: str = "mezo"
    steps: int = 1000
    start: str = BASE


def adapter_request(tune: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the adapter that `tune` names with the settings `given` (None: the default's).

    Raises:
        InputError: a setting of an adapter is given, and `tune` names none.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if tune in ADAPTERS:
        return {"kind": tune, **given}
    if given:
        name = next(iter(given))
        raise InputError(
            f"{name} is a setting of adapters, --tune is {tune}: give the adapter with --tune"
        )
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold lines like `lr: 1e-5`")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _typed(name: str, value: Any, annotation: str, source: str) -> Any:
    try:
        if annotation.startswith("tuple"):
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(value, Mapping):
                items = [f"{label}={word}" for label, word in value.items()]
            return tuple(str(item).strip() for item in items)
        if annotation.startswith("bool"):
            if not isinstance(value, bool):
                raise ValueError
            return value
        if annotation.startswith("int"):
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
            return int(value)
        if annotation.startswith("dict"):
            return {str(key).replace("-", "_"): item for key, item in value.items()}
        if annotation.startswith("float"):
            if isinstance(value, bool):
                raise ValueError
            if value == AUTO and "str" in annotation:
                return value
            return float(value)  # YAML reads 1e-5 as a string
        if not isinstance(value, str):
            raise ValueError
        return value
    except (AttributeError, TypeError, ValueError, OverflowError):
        kind = {
            "float | str": "a number or auto",
            "dict": "names with values",
            "int": "a whole number",
            "float": "a number",
            "tuple": "a list of words",
        }
        kind["bool"] = "true or false"
        wanted = next((v for k, v in kind.items() if annotation.startswith(k)), "a text")
        raise InputError(f"{source} sets {name} to {value!r}; it must be {wanted}") from None
