"""Methods that follow true gradients, in place: one layer's gradient at a time is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import GRADIENTS
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order import rules
from edgezo_runtime.first_order.draws import Draws
from edgezo_runtime.first_order.state import State
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate
from edgezo_runtime.methods.options import Number, choose
from edgezo_runtime.methods.stride import stride_of
from edgezo_runtime.select import blocks


class Loss(Protocol):
    """What these methods ask of a batch; see `edgezo_runtime.first_order.loss.BatchLoss`."""

    def __call__(self) -> float: ...

    def descend(
        self,
        names: Sequence[str],
        take: Callable[[str, Any], None],
        keep: float,
        draws: Draws,
    ) -> float: ...


class FirstOrder:
    r"""An update rule that is applied to each weight as soon as its gradient is whole.

    Weight decay :math:`\lambda` is decoupled, :math:`w \leftarrow w (1 - \eta \lambda)` before the
    update, and for matrices only. A run cannot be replayed from its journal, whose records hold the
    gradient's norm alone: it goes on from its newest snapshot.

    Args:
        arena: the trained weights.
        seed: names all random choices of the run.
        settings: by name; those not given have their defaults.

    Settings:
        weight_decay: times the learning rate.
        keep_products: the share of the depth, from the top, whose products with weights are kept
            between the passes and not computed again: faster, and more memory.

    Raises:
        InputError: a setting there is none of or that is out of range, or the weights are no
            float32.

    Attributes:
        name: as `--method` takes it.
        paper: where it comes from.
        graph: the file of the bundle that it needs besides the inference graph.
        family: of methods that are compared with each other.
        chosen: the value of each setting.
        stride: how far what is tuned goes; see `methods.stride`.
        changed: whether the last step changed weights.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    graph: ClassVar[str] = GRADIENTS
    family: ClassVar[str] = "first-order"
    weight_decay = Number(0.0, least=0)
    keep_products = Number(0.5, least=0, most=1)  # where the state takes memory anyway

    rule: ClassVar[type[rules.Rule]]
    #: Whether the state lies on disk.
    on_disk: ClassVar[bool] = False

    def __init__(self, arena: Arena, seed: int, /, **settings: Any) -> None:
        self.arena = arena
        self.seed = seed
        self.stride = stride_of(arena.parameters)
        self.chosen = choose(type(self), f"method {self.name}", settings, self.stride)
        for parameter in arena.parameters:
            if parameter.dtype != dtypes.FLOAT32.name:
                raise InputError(
                    f"{parameter.name} is {parameter.dtype}, and only float32 weights have "
                    "gradients: export the model as float32 to tune it"
                )
        self.changed = False
        self._rule = self.rule(arena)
        self._parameters = {p.name: p for p in arena.parameters}
        held = [self._rule.lengths(p) for p in arena.parameters]
        slots = dict.fromkeys(slot for lengths in held for slot in lengths)
        sizes = {slot: [lengths.get(slot, 0) for lengths in held] for slot in slots}
        self._state = State(arena.parameters, sizes, self.on_disk, arena.device)

    @property
    def lr(self) -> float:
        """The learning rate where none is given."""
        return self.rule.usual(self.stride, self.alone)

    @property
    def alone(self) -> bool:
        """Whether a step changes no matrices of layers, or those of one group."""
        stacks = blocks(self.arena.parameters).values()
        return all(
            stride_of([p]) > 1 for stack in stacks for block in stack.values() for p in block
        )

    @property
    def forwards(self) -> int:
        """Passes per step, each with its backward part."""
        return 1

    @property
    def scalars(self) -> int:
        """Numbers that a record holds besides the learning rate."""
        return 1

    @property
    def estimates(self) -> int:
        """How many of those numbers say how steep the loss is."""
        return 1

    @property
    def state(self) -> Mapping[str, Any]:
        """The arrays that steps change besides the weights; snapshots hold them."""
        return self._state.arrays

    @property
    def state_bytes(self) -> int:
        """Bytes that it keeps between steps besides the weights, in memory or on disk."""
        return self._state.nbytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of it that are in memory at once."""
        return self.state_bytes

    def settings(self) -> dict[str, Any]:
        """Returns the settings that, with the seed, make this method again."""
        return dict(self.chosen)

    def names(self, number: int) -> tuple[str, ...]:
        """Returns the weights that step `number` changes."""
        return tuple(self._parameters)

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Goes down the gradient.

        Args:
            number: the step's number, from 1.
            loss: of this step's batch; a `Loss`.
            lr: this step's learning rate.

        Raises:
            EdgezoError: a gradient is not finite, though the loss is.
        """
        self.changed = False
        return self.descend(number, as_loss(loss), lr, 1.0)

    def descend(self, number: int, loss: Loss, lr: np.float32, scale: float) -> Estimate:
        """Takes the step with the gradients times `scale`."""
        total = 0.0

        def take(name: str, gradient: Any) -> None:
            nonlocal total
            flat = gradient.reshape(-1)
            squares = rules.square_sum(flat, self.arena)
            if not math.isfinite(squares):
                raise EdgezoError(
                    f"the gradient of {name} is not finite: start again with a lower --lr"
                )
            total += squares
            self.changed = True
            self._update(name, flat, float(lr), scale)

        draws = Draws(self.seed, number)
        value = loss.descend(self.names(number), take, self.keep_products, draws)
        self._state.idle()
        if not math.isfinite(value):
            return Estimate(value, Record((np.float32(0),), lr, SKIPPED))
        return Estimate(value, Record((np.float32(math.sqrt(total)),), lr))

    def _update(self, name: str, gradient: Any, lr: float, scale: float) -> None:
        parameter, weights = self._parameters[name], self.arena.views[name].reshape(-1)
        if scale != 1:
            rules.scale(gradient, scale, self.arena)
        if self.weight_decay and len(parameter.shape) > 1:
            rules.scale(weights, 1 - lr * self.weight_decay, self.arena)
        self._rule.update(parameter, weights, gradient, lr, self._state)

    def replay(self, number: int, record: Record) -> None:
        """Raises EdgezoError: the record does not say what the step did."""
        raise EdgezoError(f"a run of {self.name} cannot be replayed from its journal")


def as_loss(loss: Callable[[], float]) -> Loss:
    """Returns `loss`, which must have gradients."""
    if not hasattr(loss, "descend"):
        raise EdgezoError("this method needs gradients: give it a BatchLoss")
    return loss  # type: ignore[return-value]


class IpSgd(FirstOrder):
    """SGD in place: no state, and by default one value per stage is kept between the passes."""

    name = "ip-sgd"
    paper = rules.Sgd.paper
    rule = rules.Sgd
    keep_products = Number(0.0, least=0, most=1)


class Lomo(FirstOrder):
    """SGD in place with the gradient's norm limited to 1, which takes a second pass.

    References:
        Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources",
        2023.
    """

    name = "lomo"
    paper = "https://arxiv.org/abs/2306.09782"
    rule = rules.Sgd
    keep_products = Number(0.0, least=0, most=1)

    @property
    def forwards(self) -> int:
        """Passes per step: one measures the gradient's norm."""
        return 2

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Measures the gradient's norm, then goes down it."""
        total = 0.0

        def measure(name: str, gradient: Any) -> None:
            nonlocal total
            total += rules.square_sum(gradient.reshape(-1), self.arena)

        given = as_loss(loss)
        self.changed = False
        draws = Draws(self.seed, number)
        value = given.descend(self.names(number), measure, self.keep_products, draws)
        if not (math.isfinite(total) and math.isfinite(value)):
            return Estimate(value, Record((np.float32(0),), lr, SKIPPED))
        return self.descend(number, given, lr, 1 / max(1.0, math.sqrt(total)))


class AdaLomo(FirstOrder):
    """LOMO with factored second moments; see `rules.AdaLomo`."""

    name = "adalomo"
    paper = rules.AdaLomo.paper
    rule = rules.AdaLomo
    keep_products = Number(0.0, least=0, most=1)


def _of(kind: type[rules.Rule]) -> type[FirstOrder]:
    """Returns the method that applies a rule to all weights in each step."""
    fields = {"name": kind.name, "paper": kind.paper, "rule": kind, "__doc__": kind.__doc__}
    return type(kind.__name__, (FirstOrder,), fields)


FIRST_ORDER: tuple[type[FirstOrder], ...] = (
    IpSgd,
    Lomo,
    AdaLomo,
    *map(_of, (rules.Momentum, rules.AdamW, rules.Adagrad, rules.RmsProp, rules.Lion)),
)
