"""Where the command line gets a model from: the default one, a bundle, a Hugging Face folder."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from edgezo.cli.export import export_checkpoint
from edgezo.cli.extras import to_install
from edgezo.demo.default_model import cache_folder, default_bundle
from edgezo_runtime.bundle import is_bundle
from edgezo_runtime.errors import EdgezoError, InputError


def default_model(say: Callable[[str], None]) -> Path:
    """Returns the default model's bundle, fetched and converted if the cache has none.

    Raises:
        EdgezoError: there is neither cache nor network, or `gguf` is not installed.
    """
    return default_bundle(_converter, say)


def bundle_of(path: Path, say: Callable[[str], None]) -> Path:
    """Returns the bundle at `path`, or that of the Hugging Face folder there, exported once.

    Raises:
        InputError: it is neither.
        EdgezoError: the exporter is not installed.
    """
    if is_bundle(path):
        return path
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is neither a bundle nor a Hugging Face folder (no config.json)")
    bundle = cache_folder() / f"{path.resolve().name}-{_identity(path)}.edgezo"
    if not is_bundle(bundle):
        say(f"exporting {path} to {bundle}")
        cache_folder().mkdir(parents=True, exist_ok=True)
        export_checkpoint(path, bundle)
    return bundle


def _identity(folder: Path) -> str:
    """Returns what changes when a checkpoint does, without reading its weights."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _converter() -> Callable[[Path, Path], None]:
    if importlib.util.find_spec("gguf") is None:
        raise EdgezoError(f"reading the model needs gguf: run `{to_install('demo')}`")
    return _convert_gguf


def _convert_gguf(gguf: Path, bundle: Path) -> None:
    """Converts in a process of its own, so that its memory is not counted as the tuning's."""
    from edgezo_export.gguf_checkpoint import gguf_to_bundle

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        pool.submit(gguf_to_bundle, gguf, bundle).result()
