"""The graphs that come with edgezo, for common models, so that those need no torch.

Each folder holds the graphs of its `config.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgezo_runtime.bundle import GENERATE, GRAPH, LEAN
from edgezo_runtime.errors import InputError

FOLDER = Path(__file__).parent / "graphs"
CONFIG = "config.json"
# What a config may say without changing the graph.
_IMMATERIAL = {
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "eos_token_id",
    "init_std",
    "initializer_range",
    "layerdrop",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def shipped() -> tuple[str, ...]:
    """Returns the names of the shipped graphs."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG}")))


def shipped_folder(name: str) -> Path:
    """Returns the folder of the graph `name`; raises InputError for one that is not shipped."""
    if name not in shipped():
        raise InputError(f"edgezo ships no graph {name!r}; use one of {', '.join(shipped())}")
    return FOLDER / name


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` in `folder`; raises InputError if it is missing or damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not a checkpoint: it has no readable {CONFIG}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a model's configuration: it is not a JSON object")
    return config


def find_graphs(config: Mapping[str, Any]) -> Path | None:
    """Returns the folder of the shipped graphs that compute the model of `config`, or None.

    Args:
        config: a configuration with its defaults written out.
    """
    for name in shipped():
        theirs = read_config(FOLDER / name).items()
        if all(config.get(key) == value for key, value in theirs if key not in _IMMATERIAL):
            return FOLDER / name
    return None


def copy_graphs(source: Path, folder: Path) -> None:
    """Copies the graphs of the folder `source` into `folder`."""
    for name in (GRAPH, GENERATE, LEAN):
        shutil.copyfile(source / name, folder / name)
