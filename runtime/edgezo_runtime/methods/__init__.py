"""The tuning methods, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods.adamu import ZoAdaMu
from edgezo_runtime.methods.addax import Addax, AddaxWa
from edgezo_runtime.methods.base import Estimate as Estimate
from edgezo_runtime.methods.base import Method as Method
from edgezo_runtime.methods.base import Probe as Probe
from edgezo_runtime.methods.base import Taken as Taken
from edgezo_runtime.methods.conservative import ZoSgdCons
from edgezo_runtime.methods.es import EvolutionStrategies
from edgezo_runtime.methods.first_order import FIRST_ORDER, FirstOrder
from edgezo_runtime.methods.forward_grad import ForwardGrad
from edgezo_runtime.methods.fzoo import Fzoo
from edgezo_runtime.methods.hessian import Helene, Hizoo
from edgezo_runtime.methods.hift import HIFT
from edgezo_runtime.methods.hybrid import Hybrid
from edgezo_runtime.methods.low_rank import Lozo, SubZero
from edgezo_runtime.methods.mezo import Mezo
from edgezo_runtime.methods.moments import ZoAdam, ZoSgdMmt
from edgezo_runtime.methods.qzo import Qzo
from edgezo_runtime.methods.recomputed import MezoAdam, MezoMomentum
from edgezo_runtime.methods.sign import ZoLlmSign, ZoSgdSign
from edgezo_runtime.methods.sparse import Block, Lezo, SparseMagnitude, SparseMezo, SparseRandom
from edgezo_runtime.methods.spsa import OneSidedSgd, SpsaN
from edgezo_runtime.methods.svrg import MezoSvrg

#: The methods that need forward passes alone.
FORWARD_ONLY: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Mezo,
        EvolutionStrategies,
        Qzo,
        SpsaN,
        OneSidedSgd,
        Fzoo,
        ZoSgdSign,
        ZoLlmSign,
        ZoSgdMmt,
        ZoAdam,
        MezoMomentum,
        MezoAdam,
        ZoAdaMu,
        ZoSgdCons,
        MezoSvrg,
        Hizoo,
        Helene,
        Block,
        Lezo,
        SparseRandom,
        SparseMagnitude,
        SparseMezo,
        Lozo,
        SubZero,
        ForwardGrad,
    )
}

#: A method of either kind: both take steps, and say what they keep.
AnyMethod = Method | FirstOrder
METHODS: dict[str, type[Method] | type[FirstOrder]] = {
    **FORWARD_ONLY,
    **{method.name: method for method in (*FIRST_ORDER, *HIFT, Addax, AddaxWa, Hybrid)},
}


def make(name: str, arena: Arena, seed: int, settings: Mapping[str, Any]) -> AnyMethod:
    """Returns the method called `name` over `arena`.

    Raises:
        InputError: there is no such method, or it does not take these settings.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; use one of " + ", ".join(METHODS))
    return METHODS[name](arena, seed, **settings)
