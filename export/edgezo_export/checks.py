"""What edgezo refuses to export, and why, before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from edgezo_export.architectures import ARCHITECTURES, Architecture, architecture_of
from edgezo_export.shipped_graphs import CONFIG, read_config
from edgezo_runtime.errors import InputError


def checked_config(source: Path) -> tuple[dict[str, Any], Architecture]:
    """Returns a checkpoint's `config.json` and its kind; raises InputError for an unknown one."""
    config = read_config(source)
    if "auto_map" in config:
        raise InputError(
            f"{source / CONFIG} has auto_map: the checkpoint needs Python code of its own, which "
            "edgezo does not run; use a checkpoint of an architecture in transformers"
        )
    if "quantization_config" in config:
        raise InputError(
            f"{source} is quantised; export the float32, float16 or bfloat16 checkpoint of it"
        )
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "none"
    kind = architecture_of(architecture)
    if kind is None:
        known = ", ".join(f"{k.what} (...{k.endings[0]})" for k in ARCHITECTURES)
        raise InputError(
            f"{source / CONFIG} names architecture {architecture!r}; edgezo exports {known}"
        )
    if not hasattr(transformers, architecture):
        raise InputError(
            f"{source / CONFIG} names architecture {architecture!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    return config, kind


def check_model(model: PreTrainedModel, config: dict[str, Any], source: Path) -> None:
    """Raises InputError unless `model` is what `config` names, and all its state is parameters."""
    made, named = type(model).__name__, config["architectures"][0]
    if made != named:
        raise InputError(
            f"{source / CONFIG} names architecture {named!r}, but its model_type "
            f"{config.get('model_type')!r} makes {made}"
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if state := sorted(model.state_dict().keys() - parameters):
        raise InputError(f"{made} keeps {state[0]!r} in its checkpoint, which is not a parameter")
