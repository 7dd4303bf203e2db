r"""Update rules: what a gradient :math:`g` does to a weight :math:`w` and to its state.

All arithmetic is float32, one operation after the other, so that the same gradient gives the same
bits however the weight is cut into chunks. The roots are correctly rounded; there is no libm.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime.bundle import Parameter
from edgezo_runtime.first_order.chunks import OneThread, Workers, each_chunk
from edgezo_runtime.first_order.state import State, matrix_shape
from edgezo_runtime.power import power

_BURST = 1 << 22  # elements after which a state on disk leaves the memory


class Rule(abc.ABC):
    """One update rule.

    Args:
        workers: share the work on a weight; the update has the same bits for any number of them.

    Attributes:
        name: of the method that is made of it.
        paper: where it comes from.
        lr: the learning rate for all weights of a language model.
        alone: how many times as high it is where the matrices of other layers stay.
        power: of the stride, which it is multiplied by; see `methods.stride`.
        least: the stride from which on it is.
        xp: the array module of the device on which it works.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    lr: ClassVar[float] = 1e-5
    alone: ClassVar[float] = 5
    power: ClassVar[float] = 1
    least: ClassVar[float] = 1

    def __init__(self, workers: Workers | None = None) -> None:
        self._workers = workers or OneThread()
        self.xp = self._workers.device.xp

    @classmethod
    def usual(cls, stride: float, alone: bool) -> float:
        """Returns the learning rate where none is given, to two digits.

        Args:
            stride: of what is tuned.
            alone: whether a step changes no matrices of layers, or those of one group.
        """
        further = stride**cls.power if stride >= cls.least else 1
        return float(f"{cls.lr * (cls.alone if alone else 1) * further:.2g}")

    def lengths(self, parameter: Parameter) -> Mapping[str, int]:
        """Returns how much each slot of the state holds of `parameter`."""
        return {}

    @abc.abstractmethod
    def update(self, parameter: Parameter, w: Any, g: Any, lr: float, state: State) -> None:
        """Changes the weights `w` and the state in place; `g` may be overwritten.

        Args:
            parameter: which one.
            w: its weights, flat, on the workers' device.
            g: its gradient, likewise.
            lr: the learning rate.
            state: holds the rule's slots.
        """


class ChunkRule(Rule):
    """A rule that works on each element alone.

    Attributes:
        slots: arrays of the parameter's size that it keeps.
        counts: whether it also keeps the number of its updates.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False

    def lengths(self, parameter: Parameter) -> Mapping[str, int]:
        sizes = dict.fromkeys(self.slots, parameter.size)
        return sizes | ({"updates": 1} if self.counts else {})

    def update(self, parameter: Parameter, w: Any, g: Any, lr: float, state: State) -> None:
        with state.of(parameter.name) as held:
            slots = [held[slot] for slot in self.slots]
            number = 0
            if self.counts:
                held["updates"] += 1
                number = int(held["updates"][0])

            def update(part: slice) -> None:
                self.chunk(w[part], g[part], [slot[part] for slot in slots], lr, number)

            for start in range(0, w.size, _BURST):
                state.idle()
                each_chunk(self._workers, start, min(start + _BURST, w.size), update)

    @abc.abstractmethod
    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        """Updates a part of the weights; `number` counts the updates from 1."""


class Sgd(ChunkRule):
    r""":math:`w \leftarrow w - \eta g`."""

    name = "ip-sgd"
    paper = "https://arxiv.org/abs/2410.06441"
    # With a power of 2, or a higher rate for norms, TREC's first steps go up.
    lr, alone, power, least = 3e-3, 1, 1.5, 10

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        g *= np.float32(lr)
        w -= g


class Momentum(ChunkRule):
    r""":math:`v \leftarrow 0.9 v + g; w \leftarrow w - \eta v`."""

    name = "sgd"
    paper = "https://pytorch.org/docs/stable/generated/torch.optim.SGD.html"
    lr = Sgd.lr / 10  # the velocity is ten times the gradient where that stays
    alone, power, least = Sgd.alone, Sgd.power, Sgd.least
    slots = ("velocity",)

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        (velocity,) = slots
        velocity *= np.float32(0.9)
        velocity += g
        self.xp.multiply(velocity, np.float32(lr), out=g)
        w -= g


class AdamW(ChunkRule):
    r""":math:`m \leftarrow 0.9 m + 0.1 g; v \leftarrow 0.999 v + 0.001 g^2;
    w \leftarrow w - \eta \hat m / (\sqrt{\hat v} + 10^{-8})`, both freed of their bias to zero.
    """

    name = "adamw"
    paper = "https://arxiv.org/abs/1711.05101"
    lr = 2e-5
    slots = ("mean", "square")
    counts = True

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        mean, square = slots
        mean *= np.float32(0.9)
        mean += np.float32(0.1) * g
        g *= g
        square *= np.float32(0.999)
        square += np.float32(0.001) * g
        self.xp.sqrt(square, out=g)
        # With root(1 - 0.999^t) moved over, one division per element is enough.
        root = float(np.sqrt(1 - power(0.999, number)))
        g *= np.float32(1 / root)
        g += np.float32(1e-8)
        self.xp.divide(mean, g, out=g)
        g *= np.float32(lr / (1 - power(0.9, number)))
        w -= g


class Adagrad(ChunkRule):
    r""":math:`s \leftarrow s + g^2; w \leftarrow w - \eta g / (\sqrt s + 10^{-10})`."""

    name = "adagrad"
    paper = "https://jmlr.org/papers/v12/duchi11a.html"
    slots = ("sum",)

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        (total,) = slots
        total += g * g
        g *= np.float32(lr)
        g /= self.xp.sqrt(total) + np.float32(1e-10)
        w -= g


class RmsProp(ChunkRule):
    r""":math:`s \leftarrow 0.99 s + 0.01 g^2; w \leftarrow w - \eta g / (\sqrt s + 10^{-8})`."""

    name = "rmsprop"
    paper = "https://pytorch.org/docs/stable/generated/torch.optim.RMSprop.html"
    slots = ("square",)

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        (square,) = slots
        square *= np.float32(0.99)
        square += np.float32(0.01) * (g * g)
        g *= np.float32(lr)
        g /= self.xp.sqrt(square) + np.float32(1e-8)
        w -= g


class Lion(ChunkRule):
    r""":math:`w \leftarrow w - \eta \, \mathrm{sign}(0.9 m + 0.1 g);
    m \leftarrow 0.99 m + 0.01 g`.
    """

    name = "lion"
    paper = "https://arxiv.org/abs/2302.06675"
    slots = ("mean",)

    def chunk(self, w: Any, g: Any, slots: list[Any], lr: float, number: int) -> None:
        (mean,) = slots
        step = self.xp.sign(np.float32(0.9) * mean + np.float32(0.1) * g)
        step *= np.float32(lr)
        w -= step
        mean *= np.float32(0.99)
        g *= np.float32(0.01)
        mean += g


class AdaLomo(Rule):
    r"""Squares kept as a mean of each row r and column c, and the update scaled to the weight:

    .. math::
        u = g / \sqrt{r c^T / \bar r}, \quad
        w \leftarrow w - \eta \, \frac{u}{\max(1, \mathrm{rms}(u))} \max(10^{-3}, \mathrm{rms}(w))

    with :math:`r \leftarrow 0.85 r + 0.15 \, \overline{g^2}`, and c likewise; vectors keep all
    their squares.
    """

    name = "adalomo"
    paper = "https://arxiv.org/abs/2310.10195"
    lr, alone, power = 5e-4, 1, 0  # the paper's, in units of the weights
    _BETA = 0.85

    def lengths(self, parameter: Parameter) -> Mapping[str, int]:
        shape = matrix_shape(parameter)
        return {"squares": parameter.size if shape is None else sum(shape)}

    def update(self, parameter: Parameter, w: Any, g: Any, lr: float, state: State) -> None:
        xp, shape = self.xp, matrix_shape(parameter)
        scale = max(1e-3, self._rms(w))
        with state.of(parameter.name) as held:
            squares = held["squares"]
            if shape is None:
                self._follow(squares, g * g)
                g /= xp.sqrt(squares)
            else:
                rows, columns = squares[: shape[0]], squares[shape[0] :]
                matrix = g.reshape(shape)
                of_rows, of_columns = self._sums(matrix)
                self._follow(rows, of_rows / np.float32(shape[1]))
                self._follow(columns, of_columns / np.float32(shape[0]))
                matrix /= xp.sqrt(rows / rows.mean())[:, None]
                matrix /= xp.sqrt(columns)
        g *= np.float32(lr * scale / max(1.0, self._rms(g)))
        w -= g

    def _sums(self, matrix: Any) -> tuple[Any, Any]:
        """Returns the sums of the squares in each row, and in each column."""
        count, width = matrix.shape
        rows, columns = self.xp.empty(count, np.float32), self.xp.zeros(width, np.float32)
        step = max(1, self._workers.device.chunk // max(1, width))
        for start in range(0, count, step):
            part = matrix[start : start + step]
            squares = part * part
            rows[start : start + step] = squares.sum(axis=1)
            columns += squares.sum(axis=0)
        return rows, columns

    def _rms(self, array: Any) -> float:
        return math.sqrt(square_sum(array, self._workers) / max(array.size, 1))

    def _follow(self, squares: Any, new: Any) -> None:
        squares *= np.float32(self._BETA)
        squares += np.float32(1 - self._BETA) * new
        self.xp.maximum(squares, np.float32(1e-30), out=squares)


def square_sum(array: Any, workers: Workers) -> float:
    """Returns the sum of the squares of a flat array."""
    dot = workers.device.xp.dot

    def squares(part: slice) -> float:
        return float(dot(array[part], array[part]))

    return sum(each_chunk(workers, 0, array.size, squares))


def scale(array: Any, factor: float, workers: Workers) -> None:
    """Multiplies a flat array by `factor`, in place."""

    def multiply(part: slice) -> None:
        piece = array[part]
        piece *= np.float32(factor)

    each_chunk(workers, 0, array.size, multiply)


RULES: Mapping[str, type[Rule]] = {
    rule.name: rule for rule in (Sgd, Momentum, AdamW, Adagrad, RmsProp, Lion, AdaLomo)
}
