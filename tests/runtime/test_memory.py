"""Memory figures follow what the process really holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import psutil
import pytest

from edgezo_runtime import dtypes, memory, safetensors_file
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.first_order.pieces import fed
from edgezo_runtime.first_order.state import State

MIB = 1 << 20


def test_resident_memory_agrees_with_psutil() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere only the peak is known")
    assert abs(memory.resident_bytes() - psutil.Process().memory_info().rss) < 16 * MIB


def test_resident_memory_follows_allocations() -> None:
    """In a process of its own: this one may hold freed memory that an allocation takes again."""
    script = (
        "import numpy as np\n"
        "from edgezo_runtime import memory\n"
        "before = memory.resident_bytes()\n"
        "block = np.ones(64 << 20, np.uint8)\n"
        "print(before, memory.resident_bytes(), memory.peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, held, peak = map(int, done.stdout.split())
    assert held - before > 32 * MIB
    assert peak >= before + 32 * MIB


def test_the_peak_is_this_process_alone() -> None:
    """A large parent does not count in its child, and what was freed still does."""
    block = np.ones(256 * MIB, np.uint8)
    script = (
        "from edgezo_runtime import memory\n"
        "start = memory.peak_bytes()\n"
        "b = bytearray(b'x') * (96 << 20)\n"
        "del b\n"
        "print(start, memory.peak_bytes(), memory.resident_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    start, peak, resident = map(int, done.stdout.split())
    assert start < block.nbytes
    assert peak - start > 64 * MIB
    assert resident <= peak


def test_elsewhere_the_peak_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")
    monkeypatch.setattr(memory, "_linux_status", lambda: None)
    assert memory.resident_bytes() == memory.peak_bytes() > 8 * MIB


def test_sessions_take_turns_in_one_memory() -> None:
    """The second one needs no more than the first one left."""
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere only the peak is known")
    device, numbers = CpuDevice(1), fed(np.ones(16 << 20, np.float32))
    held = [memory.resident_bytes()]
    sessions = []
    for operator in ("Exp", "Cos"):
        sessions.append(device.open_session(chain(operator)))
        device.run(sessions[-1], {"x": numbers}, ["y"])
        held.append(memory.resident_bytes())
    assert held[2] - held[1] < 16 * MIB


def test_a_state_on_disk_is_saved_and_read_piece_by_piece(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere only the peak is known")
    parameter, file = Parameter("w", (16 << 20,), "float32", "linear"), tmp_path / "s.safetensors"
    state = State([parameter], {"m": [parameter.size]}, disk=True)
    with state.of("w") as lent:
        lent["m"][...] = np.arange(parameter.size)
    state.idle()
    before = memory.resident_bytes()
    written = safetensors_file.write(file, [("m", dtypes.FLOAT32, state.arrays["m"])])
    assert memory.resident_bytes() - before < 16 * MIB
    with state.of("w") as lent:
        lent["m"][...] = 0
    state.idle()
    assert safetensors_file.read_into(file, state.arrays) == written
    assert memory.resident_bytes() - before < 16 * MIB
    with state.of("w") as lent:
        assert np.array_equal(lent["m"][-3:], np.arange(parameter.size)[-3:].astype(np.float32))


def chain(operator: str) -> bytes:
    """Returns a graph whose values are as large as its input, and whose output is one number."""
    nodes = f"a = {operator}(x) b = Sin(a) y = ReduceSum <keepdims = 0> (b)"
    head = '<ir_version: 8, opset_import: ["": 17]>'
    text = f"{head} chain (float[n] x) => (float y) {{ {nodes} }}"
    return onnx.parser.parse_model(text).SerializeToString()
