"""A checkpoint that is named by its id on huggingface.co, not by its folder."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from edgezo_export.quiet import quiet
from edgezo_runtime.errors import EdgezoError

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja"]


def checkpoint_folder(source: Path) -> Path:
    """Returns the folder of the checkpoint `source`.

    Args:
        source: a folder, which is returned as it is, or the id of a model on huggingface.co, whose
            files are fetched into Hugging Face's own cache unless they are there.

    Raises:
        EdgezoError: there is no such model, or neither network nor cache has it.
    """
    name = source.as_posix()
    if source.exists() or source.parent.exists() or not _ID.fullmatch(name):
        return source
    try:
        with quiet():
            folder = huggingface_hub.snapshot_download(
                name, allow_patterns=_FILES, ignore_patterns=["*/*"]
            )
    except Exception as error:  # the library raises those of its HTTP client too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgezoError(
            f"there is no folder {name}, and a model of that id could not be fetched from "
            f"huggingface.co: {reason}"
        ) from error
    return Path(folder)
