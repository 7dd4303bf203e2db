"""One step of every method, written down again: float64, dense vectors, no reuse of the engine.

Each function returns the new weights before weight decay. It gets

    w       the weights, flat
    loss    of such weights
    z       directions by step and sample
    known   takes what the step measures, compares it with the record and returns that
    lr      the learning rate
    s       a dictionary that the method's own state lives in
    m       the method, for its settings
    t       the step's number
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Vector = np.ndarray


@dataclass
class Step:
    """What a reference gets."""

    w: Vector
    loss: Callable[[Vector], float]
    z: Callable[..., Vector]
    known: Callable[..., Any]
    lr: float
    s: dict[str, Any]
    m: Any
    t: int
    flags: int = field(default=0)


def two_point(step: Step, w: Vector, z: Vector) -> float:
    eps = step.m.eps
    return (step.loss(w + eps * z) - step.loss(w - eps * z)) / (2 * eps)


def mezo(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(two_point(step, step.w, z))
    return step.w - step.lr * g * z


def forward_grad(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known((step.loss(step.w + z) - step.loss(step.w - z)) / 2)  # exact for a quadratic
    return step.w - step.lr * g * z


def clipped_mezo(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(two_point(step, step.w, z))
    seen = step.s.setdefault("seen", [])
    used = g
    if len(seen) >= 8:
        most = sorted(seen[-64:])[len(seen[-64:]) // 2]
        used = math.copysign(min(abs(g), most), g)
    seen.append(abs(g))
    return step.w - step.lr * used * z


def qzo(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(np.clip(two_point(step, step.w, z), -step.m.clip, step.m.clip))
    return step.w - step.lr * g * z


def spsa_n(step: Step) -> Vector:
    zs = [step.z(step.t, i) for i in range(step.m.samples)]
    gs = step.known(*[two_point(step, step.w, z) for z in zs])
    return step.w - step.lr * np.mean([g * z for g, z in zip(gs, zs, strict=True)], axis=0)


def es(step: Step) -> Vector:
    zs = [step.z(step.t, i) for i in range(step.m.samples)]
    losses = [step.loss(step.w + step.m.eps * z) for z in zs]
    others = [np.mean(losses[:i] + losses[i + 1 :]) for i in range(len(zs))]
    gs = step.known(*(np.array(losses) - others) / step.m.eps)
    return step.w - step.lr * np.mean([g * z for g, z in zip(gs, zs, strict=True)], axis=0)


def fzoo(step: Step) -> Vector:
    zs = [step.z(step.t, i) for i in range(step.m.samples)]
    assert {abs(v) for z in zs for v in z} <= {0.0, 1.0}
    losses = np.array([step.loss(step.w + step.m.eps * z) for z in zs])
    sigma = math.sqrt(((losses - losses.mean()) ** 2).sum() / (len(zs) - 1))
    gs = step.known(*(losses - step.loss(step.w)) / sigma)
    return step.w - step.lr * np.mean([g * z for g, z in zip(gs, zs, strict=True)], axis=0)


def one_sided(step: Step) -> Vector:
    z, eps = step.z(step.t), step.m.eps
    g = step.known((step.loss(step.w + eps * z) - step.loss(step.w)) / eps)
    return step.w - step.lr * g * z


def sign(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(two_point(step, step.w, z))
    return step.w - step.lr * np.sign(g * z)


def zo_llm_sign(step: Step) -> Vector:
    z = step.z(step.t)
    return step.w - step.lr * np.sign(step.known(two_point(step, step.w, z))) * z


def momentum(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(two_point(step, step.w, z))
    step.s["v"] = step.m.beta * step.s.get("v", 0) + g * z
    return step.w - step.lr * step.s["v"]


def adam(step: Step) -> Vector:
    z, m = step.z(step.t), step.m
    gradient = step.known(two_point(step, step.w, z)) * z
    first = step.s["m"] = m.beta1 * step.s.get("m", 0) + (1 - m.beta1) * gradient
    second = step.s["v"] = m.beta2 * step.s.get("v", 0) + (1 - m.beta2) * gradient**2
    first, second = first / (1 - m.beta1**step.t), second / (1 - m.beta2**step.t)
    return step.w - step.lr * first / (np.sqrt(second) + m.delta)


def recomputed_momentum(step: Step) -> Vector:
    z = step.z(step.t)
    past = step.s.setdefault("past", [])
    past.append(step.known(two_point(step, step.w, z)) * z)
    recent = past[::-1][: step.m.window]
    return step.w - step.lr * sum(step.m.beta**k * each for k, each in enumerate(recent))


def recomputed_adam(step: Step) -> Vector:
    z = step.z(step.t)
    past = step.s.setdefault("past", [])
    past.append(step.known(two_point(step, step.w, z)) * z)
    recent = past[::-1][: step.m.window]
    first = np.average(recent, 0, [step.m.beta1**k for k in range(len(recent))])
    second = np.average(np.square(recent), 0, [step.m.beta2**k for k in range(len(recent))])
    return step.w - step.lr * first / (np.sqrt(second) + step.m.delta)


def adamu(step: Step) -> Vector:
    m = step.m
    done = min(max((step.t - 1 - m.warmup) / m.anneal, 0), 1)
    alpha = 1 - done * (1 - m.least)
    fresh = math.sqrt(alpha) * step.z(step.t, 0)
    around = step.s.get("M", 0) + math.sqrt(1 - alpha) * step.z(step.t, 1)
    mixed = alpha * fresh + (1 - alpha) * around
    g = step.known(two_point(step, step.w, mixed))
    size = np.sqrt(alpha * fresh**2 + (1 - alpha) * around**2 + m.delta)
    step.s["M"] = np.sign(g) * mixed
    return step.w - step.lr * g * mixed / size


def conservative(step: Step) -> Vector:
    z = step.z(step.t)
    g = step.known(two_point(step, step.w, z))
    places = [step.w, step.w - step.lr * g * z, step.w + step.lr * g * z]
    best = int(np.argmin([step.loss(place) for place in places]))
    assert step.flags == (0, 2, 4)[best]
    return places[best]


def svrg(step: Step) -> Vector:
    z = step.z(step.t)
    if (step.t - 1) % step.m.interval == 0:
        g, _ = step.known(two_point(step, step.w, z), 0.0)
        step.s["anchor"] = step.w.copy(), g * z
        return step.w - step.lr * step.m.anchor_rate * g * z
    anchor, kept = step.s["anchor"]
    now, then = step.known(two_point(step, step.w, z), two_point(step, anchor, z))
    return step.w - step.lr * ((now - then) * z + kept)


def hizoo(step: Step) -> Vector:
    z, eps = step.z(step.t), step.m.eps
    d = step.s.get("D", np.ones_like(step.w))
    scaled = z / np.sqrt(d)
    ends = step.loss(step.w + eps * scaled), step.loss(step.w - eps * scaled)
    bend = abs(sum(ends) - 2 * step.loss(step.w)) / (2 * eps**2)
    g, c = step.known((ends[0] - ends[1]) / (2 * eps), bend)
    step.s["D"] = (1 - step.m.alpha) * d + step.m.alpha * c * d * z**2
    return step.w - step.lr * g * scaled


def helene(step: Step) -> Vector:
    z, m = step.z(step.t), step.m
    gradient = step.known(two_point(step, step.w, z)) * z
    alpha = m.beta1 + (1 - m.beta1) * (1 - 1 / m.anneal) ** step.t
    step.s["m"] = m.beta1 * step.s.get("m", 0) + alpha * gradient
    h = step.s.get("h", np.zeros_like(step.w))
    if (step.t - 1) % m.interval == 0:
        h = m.beta2 * h + (1 - m.beta2) * gradient**2
    step.s["h"] = h
    return step.w - step.lr * step.s["m"] / (m.gamma * np.maximum(h, m.floor) + m.delta)


REFERENCES: dict[str, Callable[[Step], Vector]] = {
    "mezo": clipped_mezo,
    "es": es,
    "qzo": qzo,
    "spsa-n": spsa_n,
    "one-sided": one_sided,
    "fzoo": fzoo,
    "zo-sgd-sign": sign,
    "zo-llm-sign": zo_llm_sign,
    "zo-sgd-mmt": momentum,
    "zo-adam": adam,
    "mezo-momentum": recomputed_momentum,
    "mezo-adam": recomputed_adam,
    "zo-adamu": adamu,
    "zo-sgd-cons": conservative,
    "mezo-svrg": svrg,
    "hizoo": hizoo,
    "helene": helene,
    "block": mezo,
    "lezo": mezo,
    "sparse-random": mezo,
    "sparse-magnitude": mezo,
    "sparse-mezo": mezo,
    "lozo": mezo,
    "subzero": mezo,
    "forward-grad": forward_grad,
}
