"""What adapters begin with has the right distribution, and the same bits everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgezo_runtime import adapter_init
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import sha256

A = Parameter("q.lora_A.weight", (8, 576), "float32", "lora", init="kaiming_uniform")
B = Parameter("q.lora_B.weight", (576, 8), "float32", "lora", init="zeros")
DIGEST = "063fb840e4d6f9b708966f55d8c998126b22b711ee581c403bb30ca8bdcfce15"
SECOND = Parameter("v.lora_A.weight", (8, 576), "float32", "lora", init="kaiming_uniform")


def test_kaiming_uniform_and_zeros() -> None:
    values = adapter_init.draw([A, B, SECOND], seed=5)
    bound = 1 / np.sqrt(576)
    drawn = values[A.name]
    assert drawn.dtype == np.float32 and drawn.shape == A.shape
    assert 0.99 * bound < np.abs(drawn).max() < bound
    assert abs(drawn.mean()) < 0.05 * bound
    assert drawn.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert not values[B.name].any()
    assert (values[SECOND.name] != drawn).mean() > 0.99
    assert (adapter_init.draw([A], seed=6)[A.name] != drawn).mean() > 0.99


def test_bits() -> None:
    """Worked out with Python's integers from the first words of Philox."""
    from edgezo_runtime.noise import Purpose, random_words

    words = random_words(5, Purpose.ADAPTER_INIT, 0, 1, 0)
    exact = [(2 * (int(w[0]) >> 8) + 1 - 2**24) / 2**24 for w in words]
    bound = np.float32(1 / 24)
    drawn = adapter_init.draw([A], seed=5)[A.name].reshape(-1)[:4]
    np.testing.assert_array_equal(drawn, [bound * np.float32(x) for x in exact])
    assert adapter_init.digest(adapter_init.draw([A, B], seed=5)) == DIGEST


def test_restore(tmp_path: Path) -> None:
    values = adapter_init.draw([A, B], seed=5)
    header = {"seed": 5, "adapter_init": adapter_init.digest(values)}
    adapter_init.write(tmp_path, values)
    path = tmp_path / adapter_init.FILE
    assert sha256(path) == header["adapter_init"]
    for _ in range(2):  # from the file, and drawn again without it
        found = adapter_init.restore([A, B], header, tmp_path)
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in values.items()
        }
        path.unlink(missing_ok=True)
    with pytest.raises(InputError, match="other values than its seed gives"):
        adapter_init.restore([A, B], header | {"seed": 6}, tmp_path)
    adapter_init.write(tmp_path, adapter_init.draw([A, B], seed=6))
    with pytest.raises(InputError, match="not what the run began with"):
        adapter_init.restore([A, B], header, tmp_path)


def test_an_unknown_beginning_is_refused() -> None:
    with pytest.raises(InputError, match="begins as 'ones'"):
        adapter_init.draw([Parameter("x", (2,), "float32", "lora", init="ones")], seed=0)
