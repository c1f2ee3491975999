"""What one client adds to a sum that is private to users: a bounded part in levels, and noise.

The update's L2 norm is cut, its values are rounded to whole levels at random, and the rounding is
drawn again until the norm of what came out is within the clip (conditional rounding: Kairouz, Liu
and Steinke 2021, arXiv:2102.06387). The source lets the bound grow with the number of
values; here it is the clip itself, whatever the size, and the update is cut a little below it
beforehand. So noise and room in a slot are known before any size is, and the sensitivity of the
sum is the clip. A share of Skellam noise comes on top (`skellam`).

Neighbours are sums with one client's part and without, its noise in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError, Fault, PrivacyError
from ..core.private import Noise
from ..core.values import Vector
from . import skellam
from .stream import KEY_BYTES, Stream

Levels = npt.NDArray[np.int64]

# A rounding leaves the clip with a chance below exp(-8); the mean moves by less than that much of
# a level. sqrt(2 * 8) is 4.
_WIDTH = 4.0
_MOST_DRAWS = 16
# Where rounding alone takes more, noise would drown what is left.
_LEAST_KEPT = 0.5


@dataclass(frozen=True, slots=True)
class Shares:
    """What clients owe, in levels of a sum.

    Attributes:
        noise: what they owe.
        half: h, the largest level of a value.
        clip: the largest |value|: the one at h.
    """

    noise: Noise
    half: int
    clip: float

    @property
    def norm(self) -> float:
        """The largest L2 norm of a client's levels."""
        return self.noise.clip * self.half / self.clip

    def variance(self, counted: int) -> float:
        """Of the noise in a value of a sum of `counted` shares, in levels."""
        return (self.noise.multiplier * self.norm) ** 2 * counted / self.noise.clients

    def tail(self, counted: int) -> int:
        """What the noise in a value of such a sum passes with a chance below 2 exp(-32)."""
        return skellam.tail(self.variance(counted))

    def multiplier(self, size: int, counted: int) -> float:
        """Of a gaussian that hides one client of a sum of `counted` shares no better than this."""
        return skellam.multiplier(self.norm, self.variance(counted), size)

    def kept(self, size: int) -> float:
        """The largest L2 norm, in levels, that an update of `size` values has before rounding.

        Raises:
            ValueError: rounding so many values takes more than half of the clip.
        """
        # On average squares add up to kept**2 + size / 4 at most; the rest is for chance (source).
        root = math.sqrt(size)
        inner = self.norm**2 - size / 4 - _WIDTH * root / 2 + _WIDTH**2 / 4
        kept = max(self.norm - root, math.sqrt(max(inner, 0.0)) - _WIDTH / 2)
        if kept < _LEAST_KEPT * self.norm:
            raise ValueError(
                f"the clip of an update must be worth sqrt({size}) = {root:.0f} levels or more, "
                f"or rounding {size} values drowns it; it is worth {self.norm:.0f}. Raise "
                "[secure_sum] bits, or lower [secure_sum] clip, of one value, against "
                "[user_privacy] clip"
            )
        return kept

    def part(self, values: Vector, rng: np.random.Generator) -> Levels:
        """`values` [n], each at most the clip of one value, as levels whose norm is at most `norm`.

        Raises:
            PrivacyError: there are too many values for the clip.
        """
        try:
            kept = self.kept(values.size)
        except ValueError as error:
            raise PrivacyError(str(error)) from error
        levels = values.astype(np.float64) * (self.half / self.clip)
        np.clip(levels, -self.half, self.half, out=levels)
        norm = float(np.sqrt(np.dot(levels, levels)))
        if norm > kept:
            levels *= kept / norm
        whole = np.floor(levels)
        rest, least = levels - whole, whole.astype(np.int64)
        for _ in range(_MOST_DRAWS):
            drawn = least + (rng.random(rest.size) < rest)
            if self._within(drawn):
                return drawn
        # Towards zero no value grows: this is within the clip whatever was drawn.
        return np.trunc(levels).astype(np.int64)

    def share(self, size: int, secret: bytes) -> Levels:
        """This client's noise [size]; the same for the same secret, which nobody else may know.

        Raises:
            PrivacyError: there is no secret.
        """
        if not self.noise.multiplier:
            return np.zeros(size, np.int64)
        if len(secret) != KEY_BYTES:
            raise PrivacyError(
                f"noise must be drawn from {KEY_BYTES} secret bytes that are kept with the update; "
                f"got {len(secret)}"
            )
        return skellam.sample(self.variance(1), size, Stream(secret))

    def _within(self, levels: Levels) -> bool:
        return int(np.dot(levels, levels)) <= self.norm**2


def shares_of(noise: Noise | None, bits: int, clip: float, capacity: int) -> Shares | None:
    """What clients owe a sum of values of `bits` and of at most `clip`; None where nothing.

    Raises:
        ConfigError: it cannot be kept.
    """
    if noise is None:
        return None
    shares = Shares(noise, 2 ** (bits - 1) - 1, clip)
    if not 0.0 < noise.clip < math.inf:
        raise _fault("clip", f"must be finite and above 0; got {noise.clip}")
    if not 0.0 <= noise.multiplier < math.inf:
        raise _fault("noise_multiplier", f"must be finite and 0 or more; got {noise.multiplier}")
    if not 1 <= noise.clients <= capacity:
        problem = f"must be 1..{capacity}, which one sum has room for; got {noise.clients}"
        raise _fault("clients", problem)
    if shares.variance(1) > skellam.LARGEST_VARIANCE:
        found, most = math.sqrt(shares.variance(1)), math.sqrt(skellam.LARGEST_VARIANCE)
        problem = f"must be noise of at most {most:.3g} levels in each client; it is {found:.3g}"
        remedy = f"lower [secure_sum] bits = {bits}, or raise [secure_sum] clip = {clip}"
        raise _fault("noise_multiplier", problem, remedy)
    return shares


def cut_to_norm(delta: Vector, clip: float) -> Vector:
    """`delta` [n], float32, with an L2 norm of at most `clip`; itself where it has that.

    Raises:
        PrivacyError: it is not finite.
    """
    if not np.isfinite(delta).all():
        raise PrivacyError(
            "the update must be finite; it is not, and nothing is sent. Lower [train] lr."
        )
    norm = _norm(delta)
    if norm <= clip:
        return delta
    # Each value is rounded by at most 2**-24 of it.
    cut = (delta.astype(np.float64) * (clip / norm * (1 - 2.0**-23))).astype(np.float32)
    if _norm(cut) > clip:
        raise PrivacyError(f"the L2 norm must be at most {clip}; cutting left {_norm(cut)}")
    return cut


def _norm(delta: Vector) -> float:
    wide = delta.astype(np.float64)
    return float(np.sqrt(np.dot(wide, wide)))


def _fault(key: str, problem: str, remedy: str = "") -> ConfigError:
    return ConfigError([Fault(f"user_privacy.{key}", problem, remedy)])
