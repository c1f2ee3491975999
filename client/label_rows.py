"""The rows of the head, each averaged over the clients that hold its label.

A mean over all clients takes a label's row hardly anywhere when one client in ten holds the label:
nine of ten changes are of clients that can only push it away. Here each client scales the change of
each row by how far its share of the label is above the mean label's, 0 where it holds none, so that
the server's ordinary weighted mean is one over the records of that label. Nothing more is sent, and
sums may be encrypted as ever; where they are not, rows that stand still tell which labels a client
lacks. Exact where labels are as frequent as each other over all clients; a label that is
twice as frequent moves twice as far in a round.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ..core.values import Manifest, Vector

_HEAD = "head."


def scales(
    labels: Sequence[str], counts: Sequence[int], new: Collection[str]
) -> npt.NDArray[np.float32]:
    """By what each row's change is multiplied [labels], >= 0; 1 for shares like the mean label's.

    New and old labels are compared among themselves: how often old ones are replayed is another
    choice.

    Args:
        labels: of the head, in order.
        counts: of the round's records with each label.
        new: the labels of the domain being learnt; empty where none is.
    """
    found = np.zeros(len(labels))
    met = np.asarray(counts, np.float64)
    fresh = np.array([label in new for label in labels], bool)
    for group in (fresh, ~fresh):
        total = met[group].sum()
        if total:
            found[group] = met[group] / total * group.sum()
    return found.astype(np.float32)


def by_label(change: Vector, manifest: Manifest, scale: npt.NDArray[np.float32]) -> Vector:
    """The change of all tensors, float32 [manifest.size], rows of the head times their scale.

    Args:
        change: float32 [manifest.size].
        manifest: in the head's tensors a row is a label.
        scale: of `scales`, [labels].
    """
    scaled = change.copy()
    for name, part in manifest.unpack(scaled).items():
        if name.startswith(_HEAD):
            part *= scale.reshape(-1, *[1] * (part.ndim - 1))
    return scaled
