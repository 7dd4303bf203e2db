"""Multinomial logistic regression, fitted by L-BFGS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_REMEMBERED = 10
_ITERATIONS = 300
_PRECISION = 1e-6  # of the gradient's largest entry
_ENOUGH = 1e-4  # likewise, where a run goes on from there
_DECREASE = 1e-4  # of the loss along a step, as a part of what the slope promises

#: A point's loss and gradient.
Valued = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Logistic:
    """A fitted model; features are put to mean 0 and deviation 1 first.

    Attributes:
        mean: of the features, (features,).
        deviation: of the features, (features,).
        weights: with a row for the constant, (features + 1, classes).
    """

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def log_chances(self, features: np.ndarray) -> np.ndarray:
        """Returns the log-probability of each class, (rows, classes) float64."""
        scaled = (features - self.mean) / self.deviation
        return log_softmax(_with_constant(scaled) @ self.weights)


def fit(features: np.ndarray, labels: np.ndarray, classes: int, decay: float) -> Logistic:
    r"""Minimises the mean cross-entropy :math:`+ \frac{\lambda}{2} \|W\|^2`.

    Args:
        features: (rows, features).
        labels: class of each row, (rows,) int64.
        classes: how many there are.
        decay: lambda, above 0: then there is one minimum.

    References:
        Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization",
        Mathematical Programming, 1989.
    """
    features = features.astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1
    inputs = _with_constant((features - mean) / deviation)
    begun = np.zeros((classes, inputs.shape[1]))
    return Logistic(mean, deviation, fit_from(inputs, labels, begun, decay, _PRECISION).T)


def fit_from(
    features: np.ndarray,
    labels: np.ndarray,
    start: np.ndarray,
    decay: float,
    precision: float = _ENOUGH,
) -> np.ndarray:
    r"""Minimises the mean cross-entropy :math:`+ \frac{\lambda}{2} \|W - W_0\|^2`.

    Args:
        features: (rows, features) float64, taken as they are, without a constant.
        labels: class of each row, (rows,) int64.
        start: W_0, (classes, features) float64.
        decay: lambda, above 0.
        precision: of the gradient's largest entry.

    Returns:
        W, (classes, features).
    """
    rows = np.arange(len(labels))

    def valued(point: np.ndarray) -> tuple[float, np.ndarray]:
        change = point.reshape(start.shape)
        found = log_softmax(features @ (start + change).T)
        slope = np.exp(found)
        slope[rows, labels] -= 1
        gradient = slope.T @ features / len(rows) + decay * change
        return float(-found[rows, labels].mean() + decay / 2 * (point @ point)), gradient.ravel()

    return start + _minimised(valued, np.zeros(start.size), precision).reshape(start.shape)


def fit_options(features: Sequence[np.ndarray], right: Sequence[int], decay: float) -> np.ndarray:
    r"""Minimises the mean of :math:`-\log \mathrm{softmax}(X_i w)_{y_i}`, with a penalty on w.

    The penalty is :math:`\frac{\lambda}{2} \|w\|^2` for features of deviation 1 over all options.

    Args:
        features: X, of each row (options, features).
        right: y, the right option of each row.
        decay: lambda, above 0.

    Returns:
        w, (features,), for the features as they are.
    """
    whole = np.concatenate(features).astype(np.float64)
    deviation = whole.std(axis=0)
    deviation[deviation == 0] = 1
    whole /= deviation
    starts = np.cumsum([0, *(len(options) for options in features)])[:-1]
    sizes = np.array([len(options) for options in features])
    chosen = starts + np.asarray(right, np.int64)

    def valued(point: np.ndarray) -> tuple[float, np.ndarray]:
        scores = whole @ point
        scores -= np.repeat(np.maximum.reduceat(scores, starts), sizes)
        chances = np.exp(scores)
        totals = np.add.reduceat(chances, starts)
        loss = (np.log(totals) - scores[chosen]).mean()
        slope = chances / np.repeat(totals, sizes)
        slope[chosen] -= 1
        gradient = slope @ whole / len(sizes) + decay * point
        return float(loss + decay / 2 * (point @ point)), gradient

    return _minimised(valued, np.zeros(whole.shape[1]), _PRECISION) / deviation


def _minimised(valued: Valued, point: np.ndarray, precision: float) -> np.ndarray:
    """Returns where a convex function is least."""
    past: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_REMEMBERED)
    loss, gradient = valued(point)
    for _ in range(_ITERATIONS):
        if np.abs(gradient).max() < precision:
            break
        direction = -_times_inverse(gradient, past)
        slope = float(gradient @ direction)
        length = 1.0
        while True:
            ahead = point + length * direction
            new_loss, new_gradient = valued(ahead)
            if new_loss <= loss + _DECREASE * length * slope or length < 1e-12:
                break
            length /= 2
        step, change = ahead - point, new_gradient - gradient
        if (bend := float(step @ change)) > 0:
            past.append((step, change, bend))
        point, loss, gradient = ahead, new_loss, new_gradient
    return point


def _times_inverse(
    gradient: np.ndarray, past: deque[tuple[np.ndarray, np.ndarray, float]]
) -> np.ndarray:
    """Returns the inverse Hessian, as past steps show it, times `gradient`."""
    found = gradient.copy()
    shares = []
    for step, change, bend in reversed(past):
        shares.append(share := step @ found / bend)
        found -= share * change
    if past:
        _, change, bend = past[-1]
        found *= bend / (change @ change)
    for (step, change, bend), share in zip(past, reversed(shares), strict=True):
        found += step * (share - change @ found / bend)
    return found


def _with_constant(features: np.ndarray) -> np.ndarray:
    return np.hstack([features, np.ones((len(features), 1))])


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Returns the log-probability of each class, (rows, classes)."""
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
