"""What is said to install."""

from __future__ import annotations

from importlib import metadata

import pytest

from edgezo.cli.extras import to_install

REQUIRED = [
    "numpy>=2.0",
    "onnxruntime>=1.24; extra == 'onnx'",
    "onnx>=1.18; extra == 'onnx'",
    'onnx-ir>=0.1.16; extra == "onnx"',
    "onnx>=1.18; extra == 'export'",
    "onnxruntime-genai>=0.14; extra == 'dev'",
]


def only(*installed: str) -> object:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    return version


def test_the_extra_beside_the_cpu_s_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", only("onnxruntime"))
    assert to_install("onnx") == "pip install 'edgezo[onnx]'"


def test_its_packages_beside_the_one_for_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra would bring the CPU's ONNX Runtime over it."""
    monkeypatch.setattr(metadata, "version", only("onnxruntime-gpu"))
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRED)
    assert to_install("onnx") == "pip install 'onnx>=1.18' 'onnx-ir>=0.1.16'"


@pytest.mark.parametrize("extra", ["onnx", "export", "demo"])
def test_no_extra_s_packages_bring_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", only("onnxruntime-gpu"))
    told = to_install(extra)
    assert "onnxruntime" not in told and "edgezo" not in told and "'" in told
