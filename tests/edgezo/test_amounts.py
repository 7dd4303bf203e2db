"""Sizes and times as they are written, and what memory is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgezo.plan.amounts import parse_memory, parse_time
from edgezo_runtime import memory
from edgezo_runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "count"),
    [("700MB", 700e6), ("1.5GB", 1.5e9), ("2 GiB", 2**31), ("512mib", 2**29), (".5kb", 500)],
)
def test_sizes(text: str, count: float) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["700", "MB", "-1GB", "0MB", "7 pounds", "1e3MB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory is .* give a size such as 700MB"):
        parse_memory(text)
    with pytest.raises(InputError, match=r"--time is .* give a time such as 90s"):
        parse_time(text)


def test_auto_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_bytes()
    assert free is None or 0 < free < 1 << 50
    monkeypatch.setattr(memory, "_group_bytes", lambda: iter([12345]))
    assert free is None or parse_memory("auto") == 12345


def test_a_control_group_leaves_its_limit_less_what_it_cannot_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "fs" / "own"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    (group.parent / "memory.max").write_text("max\n")
    (tmp_path / "cgroup").write_text("0::/own\n")
    places = {"/proc/self/cgroup": tmp_path / "cgroup", "/sys/fs/cgroup": tmp_path / "fs"}
    monkeypatch.setattr(memory, "Path", lambda path: places.get(str(path), Path(path)))
    assert list(memory._group_bytes()) == [550]
