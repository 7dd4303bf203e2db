"""A Hugging Face checkpoint's weights, read tensor by tensor from its own safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgezo_export.convert_dtype import converted
from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import WEIGHTS, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.safetensors_file import TensorEntry

INDEX = f"{WEIGHTS}.index.json"


def has_weights(folder: Path) -> bool:
    """Whether there are safetensors in `folder`."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


class CheckpointFiles:
    """The tensors of `model.safetensors`, or of the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers; raises InputError if there are no weights or a shard is missing."""
        self.folder = folder
        self._entries = {
            name: (path, entry)
            for path in self._paths()
            for name, entry in safetensors_file.read_header(path).items()
        }

    def _paths(self) -> list[Path]:
        whole, index = self.folder / WEIGHTS, self.folder / INDEX
        if whole.is_file():
            return [whole]
        if not index.is_file():
            raise InputError(
                f"{self.folder} has no {WEIGHTS}; edgezo reads safetensors only, never pickles "
                "(convert the checkpoint with its save_pretrained)"
            )
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is not an index of weights: {error!r}") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise InputError(f"{index} names {name!r}, which is not a file of its own folder")
        return [self.folder / name for name in names]

    def find(self, parameter: Parameter) -> tuple[Path, TensorEntry]:
        """Returns the file and the place of `parameter`, under its name or a tied one.

        Raises:
            InputError: no such tensor, or one of another shape or of a dtype that is not a float.
        """
        path, entry = self._named(parameter)
        if entry.shape != parameter.shape:
            raise InputError(
                f"tensor {entry.name!r} of {path} is {list(entry.shape)}, "
                f"its config.json says {list(parameter.shape)}"
            )
        if entry.dtype not in dtypes.TRAINABLE:
            raise InputError(
                f"tensor {entry.name!r} of {path} is {entry.dtype.name}; edgezo exports float32, "
                "float16 and bfloat16 checkpoints"
            )
        return path, entry

    def _named(self, parameter: Parameter) -> tuple[Path, TensorEntry]:
        keys = (parameter.name, *parameter.aliases)
        # A checkpoint of the base model alone lacks the first part of each name.
        for name in (*keys, *(name.partition(".")[2] for name in keys)):
            for spelling in (name, _as_first_written(name)):
                if spelling in self._entries:
                    return self._entries[spelling]
        raise InputError(f"{self.folder} has no tensor {parameter.name!r}")

    def tensor(self, parameter: Parameter) -> np.ndarray:
        """Returns the value of `parameter` in its dtype.

        Raises:
            InputError: what `find` refuses, or a number too large for the parameter's dtype.
        """
        path, entry = self.find(parameter)
        values = safetensors_file.map_tensor(path, entry)
        try:
            return converted(values, entry.dtype, dtypes.named(parameter.dtype))
        except OverflowError as error:
            raise InputError(f"tensor {entry.name!r} of {path} has {error}") from error


def _as_first_written(name: str) -> str:
    """Returns the name that BERT's first checkpoints gave to the layer norm weight `name`."""
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")
