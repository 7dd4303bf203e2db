"""What `import edgezo` costs, and which package may import which."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edgezo_runs import run

import edgezo
import edgezo_export
import edgezo_runtime

HEAVY = ("torch", "transformers", "optimum", "onnx", "matplotlib", "gguf", "onnxruntime")
PACKAGES = {
    package.__name__: Path(str(package.__file__)).parent
    for package in (edgezo, edgezo_runtime, edgezo_export)
}


def imported(statement: str) -> dict[str, Any]:
    """Returns what a fresh interpreter holds after `statement`: modules, memory, seconds."""
    script = f"""
import json, sys, time
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
import psutil
rss = psutil.Process().memory_info().rss / 1e6
print(json.dumps({{"modules": sorted(sys.modules), "mb": rss, "seconds": seconds}}))
"""
    done = run([sys.executable, "-c", script])
    assert done.status == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize("statement", ["import edgezo", "import edgezo.cli"])
def test_import_is_light(statement: str) -> None:
    bare, ours = imported("import numpy"), imported(statement)
    modules = {name.partition(".")[0] for name in ours["modules"]}
    assert not modules & set(HEAVY)
    grown, seconds = ours["mb"] - bare["mb"], ours["seconds"]
    print(f"{statement}: {grown:.1f} MB above NumPy, {seconds:.2f} s")
    assert grown < 80
    assert seconds < 5


def test_telemetry_is_off_before_onnxruntime_is_imported(tiny_bundle: Path) -> None:
    script = f"""
import builtins, os
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
seen, real = [], builtins.__import__
def watch(name, *arguments, **named):
    if name.partition(".")[0] == "onnxruntime":
        seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
    return real(name, *arguments, **named)
builtins.__import__ = watch
import edgezo
assert not seen, seen
edgezo.load({str(tiny_bundle)!r}, threads=1)
assert seen and set(seen) == {{"1"}}, seen
"""
    done = run([sys.executable, "-c", script])
    assert done.status == 0, done.err


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields every file under `folder` and the top of each package that it imports anywhere."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                yield path.relative_to(folder), name.partition(".")[0]


def test_imports_point_one_way() -> None:
    found = {name: list(imports(folder)) for name, folder in PACKAGES.items()}
    assert all(found.values())
    assert not [f for f in found["edgezo_runtime"] if f[1] in ("edgezo", "edgezo_export")]
    assert not [f for f in found["edgezo_export"] if f[1] == "edgezo"]
    outside = [f for f in found["edgezo"] if f[1] == "edgezo_export" and f[0].parts[0] != "cli"]
    assert not outside


def test_onnxruntime_is_imported_in_one_place() -> None:
    found = [
        f"{name}/{path.as_posix()}"
        for name in ("edgezo", "edgezo_runtime")
        for path, module in imports(PACKAGES[name])
        if module == "onnxruntime"
    ]
    assert found == ["edgezo_runtime/ort.py"]


def test_the_engine_needs_little() -> None:
    ours = {"numpy", "onnxruntime", "tokenizers", "safetensors", "jinja2", "edgezo_runtime"}
    names = {module for _, module in imports(PACKAGES["edgezo_runtime"])}
    assert names - set(sys.stdlib_module_names) <= ours
