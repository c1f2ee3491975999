"""Shared parameters and those of a domain: rank slices, whole adapters, or the last layers only."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from ..core.continual import Continual, Kept, Tensors
from ..core.errors import ConfigError, Fault, RunError
from ..core.values import Manifest, Vector

_FACTORS = (".lora_A", ".lora_B")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "slices": {"rank_per_domain": 1, "head": "frozen"},
    "adapters": {"router": "lda", "router_layers": 4, "router_width": 0},
    "last_layers": {"layers": 1},
}


def build(
    *,
    mode: Literal["slices", "adapters", "last_layers"] = "adapters",
    rank_per_domain: Annotated[int | None, Field(ge=1)] = None,
    head: Literal["frozen", "shared"] | None = None,
    layers: Annotated[int | None, Field(ge=0)] = None,
    router: Literal["means", "lda", "ridge"] | None = None,
    router_layers: Annotated[int | None, Field(ge=1, le=256)] = None,
    router_width: Annotated[int | None, Field(ge=0, le=32_768)] = None,
) -> Continual:
    """The method that keeps what earlier domains have learnt out of the way of the next one.

    Args:
        mode: `slices` gives each domain ranks of the one adapter and freezes those of earlier
            domains, until all are taken; `adapters` gives each domain an adapter and head rows of
            its own, kept by the server, and a router that chooses among them for each record (for
            models with labels; there is room for any number of domains, and they need neither
            `replay` nor `ewc`); `last_layers` lets only the top layers and the head move, for cheap
            updates.
        rank_per_domain: of `slices`: ranks that a domain takes, 1 where it is not given; [model]
            rank over it is how many domains there is room for.
        head: of `slices`: `frozen`, which it is where it is not given, lets only rows of the
            domain's own labels move, but in tuning rounds of other methods; `shared` lets all rows
            move, which needs replay.
        layers: of `last_layers`: how many layers with LoRA may move, from the top; 0 for the head
            alone; 1 where it is not given.
        router: of `adapters`: the nearest class mean (`means`), linear discriminants (`lda`, where
            nothing is given) or ridge regression (`ridge`). `means` sends least and stands noise
            best: take it, with one or two layers, in a private run.
        router_layers: of `adapters`: from how many top layers of the frozen base the router's
            features are pooled, side by side; 4 where it is not given.
        router_width: of `adapters`: random features on top of them; 0, or not given, for none.
            Whatever the router, what each client sends at the end of a domain grows with the
            number of its features; with `lda` and `ridge` it grows with the square of it.

    Raises:
        ConfigError: an option of another mode is given, which would do nothing.
    """
    options = _own(
        mode,
        rank_per_domain=rank_per_domain,
        head=head,
        layers=layers,
        router=router,
        router_layers=router_layers,
        router_width=router_width,
    )
    if mode == "slices":
        from . import slices

        return slices.method(options["rank_per_domain"], options["head"])
    if mode == "last_layers":
        return _last_layers(options["layers"])
    from . import adapters
    from .router import Router

    kind, pooled, width = (options[name] for name in _DEFAULTS["adapters"])
    return adapters.method(Router(kind, pooled, width))


def _own(mode: str, **options: Any) -> dict[str, Any]:
    """What is given of the mode's own options, and the defaults of the others."""
    given = {name: value for name, value in options.items() if value is not None}
    if others := [name for name in given if name not in _DEFAULTS[mode]]:
        problem = f"does nothing with mode = {mode!r}"
        raise ConfigError([Fault(f"continual.{n}", problem, _remedy(n, mode)) for n in others])
    return {**_DEFAULTS[mode], **given}


def _remedy(name: str, mode: str) -> str:
    of = next(other for other, options in _DEFAULTS.items() if name in options)
    own = ", ".join(_DEFAULTS[mode])
    return f"leave it out, or write mode = {of!r}, whose option it is; {mode!r} has {own}"


def _last_layers(layers: int) -> Continual:
    def begin(kept: Kept, params: Vector, manifest: Manifest, index: int) -> tuple[Kept, Vector]:
        still = _still(manifest.names, layers)
        if len(still) == len(manifest.names):
            raise RunError(
                f"with mode = 'last_layers' and layers = {layers} nothing of this model may move: "
                "it has no head. Write [continual] layers = 1 or more."
            )
        return kept, params

    def mask(memory: frozenset[str], parameters: Tensors) -> Tensors:
        return {n: p.new_zeros(()) for n, p in parameters.items() if n in memory}

    # Layers are counted in the whole manifest: a strategy may train a part of it only.
    return Continual(
        start=lambda phase: _still(phase.manifest.names, layers),
        mask=mask,
        begin=begin,
        users=False,
        private=True,
    )


def _still(names: tuple[str, ...], layers: int) -> frozenset[str]:
    """LoRA factors below the top `layers` layers that have any.

    Raises:
        RunError: the names do not say which layer a factor is in.
    """
    found: dict[str, int] = {}
    lists = set()
    for name in names:
        if not name.endswith(_FACTORS):
            continue
        numbered = re.match(r"(?P<list>(?:[^.]+\.)*?)(?P<layer>\d+)\.", name)
        if numbered is None:
            raise _unknown(name)
        lists.add(numbered["list"])
        found[name] = int(numbered["layer"])
    if len(lists) > 1:
        raise _unknown(" and ".join(sorted(f"{part}0" for part in lists)))
    moving = sorted(set(found.values()))[-layers:] if layers else []
    return frozenset(name for name, layer in found.items() if layer not in moving)


def _unknown(got: str) -> RunError:
    return RunError(
        "mode = 'last_layers' needs names of tensors that number the layers of one list, such as "
        f"'layer.5.query.lora_A'; got {got}. Use another mode, or let [model] layers say which "
        "layers are adapted."
    )
