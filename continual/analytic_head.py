"""A head in closed form: sums of per-example statistics, so order and forgetting do not exist.

Class means, linear discriminants with one covariance, or ridge regression, on pooled layers of
the encoder or on random features of them (McDonnell et al. 2023, arXiv:2307.02251). Each client
sums counts, class sums and the Gram matrix of its records at the end of a domain; the server adds
the sums up and solves. The result is the same, bit for bit, for any order of domains and any split
over clients, because features are whole numbers; a late record is added when it comes, and one
that is withdrawn is subtracted. In a private run each domain's own records give one noisy sum and
nothing is subtracted: what was released with noise stands, and its charge covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..core.continual import nothing
from ..core.errors import ConfigError, Fault
from ..core.parts import Answer, Continual, Kept, Lesson, Model, Phase, Tensors
from ..core.values import Manifest, Records, Vector

if TYPE_CHECKING:
    from .analytic_answer import Recipe

Form = Literal["means", "lda", "ridge"]
Encoder = Literal["base", "first", "refresh", "both"]

_BITS = 12
"""Rounded to 8 or 10 bits, sums destroy the head; 16 cost nothing."""


def build(
    *,
    form: Form = "ridge",
    layers: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=0, le=32_768)] = 0,
    regulariser: Annotated[float, Field(ge=0.0)] = 0.0,
    encoder: Encoder = "base",
    blend: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = "auto",
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
) -> Continual:
    """A head whose weights follow from sums over all records, with no gradient.

    Args:
        form: `means` (counts and class sums travel, little; the covariance within classes is that
            of the server's validation records, where it helps), `lda`, or `ridge` (both with the
            Gram matrix's upper triangle).
        layers: how many top layers of the encoder are pooled, side by side; all of a smaller one.
        width: random features on them; 0 takes the pooled features themselves. Accuracy rises
            with it, and the upload with its square.
        regulariser: of `ridge`, in units of the Gram matrix's mean diagonal; of `lda` and `means`,
            the share of the identity in the covariance, at most 1. 0 chooses it on the server's
            validation records, or takes a default without any.
        encoder: `base`, the frozen encoder; `first`, the adapter trains in the first domain only
            and features are taken through it; `refresh`, it trains always, and at the end of each
            domain each client sums all records it holds anew, in the place of what was summed
            before: what is not held any more, and clients that are away, no longer count; `both`,
            a head of `base` and one of `refresh` answer together, for twice the upload.
        blend: weight of the adapter's own head in the answer; `auto` chooses it on the server's
            validation records, and takes 0 without any, and for `both`.
        seed: of the random features; public, and the same everywhere. The second half of `both`
            takes the next one.

    Raises:
        ConfigError: a share of the identity above 1.
    """
    if form != "ridge" and regulariser > 1.0:
        problem = f"must be a share, 0..1, for form {form!r}; got {regulariser:g}"
        raise ConfigError([Fault("continual.regulariser", problem, "give 0 to have it chosen")])
    if encoder == "both":
        from .analytic_pair import paired

        shared: dict[str, Any] = {"form": form, "layers": layers, "width": width}
        # Chosen half by half, the adapter's own head would have a say in both.
        shared |= {"regulariser": regulariser, "blend": 0.0 if blend == "auto" else blend}
        # Random features of its own for each half: what chance did to one it did not to the other.
        other = (seed + 1) % 2**31
        return paired(
            build(**shared, encoder="base", seed=seed),
            build(**shared, encoder="refresh", seed=other),
        )
    second, renew = form != "means", encoder == "refresh"

    def start(phase: Phase) -> Phase:
        from . import analytic_client

        return analytic_client.start(phase)

    def recipe(manifest: Manifest) -> Recipe:
        from .analytic_answer import Recipe
        from .analytic_client import depth_of

        return Recipe(min(layers, depth_of(manifest)), width, seed, encoder != "base")

    def mask(phase: Phase, parameters: Tensors) -> Tensors:
        if encoder != "first" or not phase.index:
            return {}
        frozen = [name for name in parameters if not name.startswith("head.")]
        return {name: parameters[name].new_zeros(()) for name in frozen}

    def size(manifest: Manifest) -> int:
        from .analytic_client import shape_of
        from .statistics import size

        num_labels, hidden = shape_of(manifest)
        return size(num_labels, recipe(manifest).num_features(hidden), second=second)

    def finish(phase: Phase, shard: Records, model: Model, _: Phase) -> Vector:
        from . import analytic_client

        how = recipe(model.manifest)
        return analytic_client.sums(phase, shard, model, how, refresh=renew, second=second)

    def learn(kept: Kept, lesson: Lesson) -> Kept:
        from . import analytic_server

        solver = analytic_server.Solver(form, regulariser, blend, renew)
        return analytic_server.learn(kept, lesson, recipe(lesson.manifest), solver)

    def answer(head: Vector, model: Model, labels: tuple[str, ...]) -> Answer:
        from . import analytic_answer

        return analytic_answer.answer(head, model, labels)

    def facts(kept: Kept) -> Mapping[str, float | int | str]:
        from . import analytic_server

        return analytic_server.facts(kept)

    return Continual(
        start=start,
        mask=mask,
        size=size,
        finish=finish,
        learn=learn,
        told=lambda kept: nothing(),
        head=lambda kept: kept["head"] if "head" in kept else nothing(),
        answer=answer,
        facts=facts,
        sums=1,
        bits=_BITS,
        untrained=encoder == "base",
        users=False,
        classifies=True,
        private=not renew,
        remedy="write encoder = 'base' or 'first'",
    )
