"""A second opinion on epsilon: privacy random variables, by Opacus' accountant.

Gopi, Lee, Wutschitz 2021, arXiv:2106.02848. Nothing is decided by it: it stands beside the
figures of `accounting`, so that a fault of one library shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ..core.errors import PrivacyError
from ..core.values import Spend
from .accounting import account_of, checked_delta, rdp_epsilon


def prv_epsilon(spends: Sequence[Spend], delta: float) -> tuple[float, float]:
    """Epsilon of one cohort by PRV, and by how much it may be off either way.

    Args:
        spends: uses of the same records, Gaussian ones; at least one.
        delta: in (0, 1).

    Raises:
        PrivacyError: delta or a spend is out of range, or a mechanism is not Gaussian.
    """
    account = account_of(spends)
    if not account or any(mechanism != "gaussian" for _, _, mechanism, _ in account):
        raise PrivacyError(f"PRV is known for uses of Gaussian noise only; got {account}")
    from opacus.accountants import PRVAccountant

    # A grid for an error of 0.01 at an epsilon of 100 would take gigabytes and tell no more.
    error = max(0.01, 0.01 * rdp_epsilon(spends, checked_delta(delta)))
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps) for rate, noise, _, steps in account]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # integrals over tails of no mass, logarithms of zero
        found = accountant.get_epsilon(delta, eps_error=error)
    return float(found) - error, error  # the library adds the error
