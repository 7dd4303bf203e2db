"""A checkpoint that is named by its id on huggingface.co, not by its folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from requests import RequestException

from edgezo_export.quiet import quiet
from edgezo_runtime.errors import EdgezoError, InputError

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
#: Settings, weights, and what tokenizers are made of where there is no tokenizer.json; no pickles,
#: no code, and no second copy of the weights for other programs.
_FILES = ["*.json", "*.jinja", "model*.safetensors", "*.model", "vocab.txt", "merges.txt"]


def checkpoint_folder(source: Path) -> Path:
    """Returns the folder of the checkpoint `source`.

    Args:
        source: a folder, which is returned as it is, or the id of a model on huggingface.co, whose
            files are fetched into Hugging Face's own cache unless they are there.

    Raises:
        InputError: there is no such model, or it is not shown to everybody.
        EdgezoError: neither network nor cache has it.
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
        # What the library says of a missing cache hides why it looked there.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        kind = InputError if isinstance(cause, RepositoryNotFoundError) else EdgezoError
        place = urlsplit(constants.ENDPOINT).netloc
        raise kind(
            f"there is no folder {name}, and a model of that id could not be fetched from "
            f"{place}: {_reason(cause or error)}"
        ) from error
    return Path(folder)


def _reason(error: BaseException) -> str:
    if isinstance(error, GatedRepoError):
        return "accept its terms on its page, and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is none, or it is private and needs `hf auth login`"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 forbids it, and the cache does not have it"
    if isinstance(error, RequestException):
        if error.response is not None:
            return f"the answer is {error.response.status_code} {error.response.reason}"
        return "the connection failed; what has arrived is kept, so run the command again"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
