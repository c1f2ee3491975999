"""A private step beside a non-private one: MiniLM, LoRA of rank 8 in all six layers, 16 tokens.

A non-private step is forward, backward and AdamW; a private one has clipping per example, noise
and, for ours, all guards between them. Steps of all ways take turns in one process and one thread;
the figure is the median over turns of the ratio of their times. On a CPU that is CPU time, on a GPU
(`--device cuda`) the time from one synchronisation to the next. Peers are Opacus' hooks, its ghost
clipping and its ExpandedWeights, all with Opacus' own optimizer and plain (not secret) noise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy

import torch
from table import Row, median, progress, run
from torch import nn

from perennial.core import plugins
from perennial.core.parts import Model
from perennial.privacy.steps import session as private_session

TOKENS, LABELS, CLIP, NOISE = 16, 30, 1.0, 1.0
TARGETS = {"q,v": ("query", "value"), "all linears": ("all",)}
BARS = {"q,v": 1.08, "all linears": 1.15}
BATCHES = (32, 128)
OURS, FALLBACK = "ours", "ours by Opacus' hooks"

Step = Callable[[], None]


class Classifier(nn.Module):
    """The product's encoder and head, as one module from ids [b, t] to logits [b, labels]."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        super().__init__()
        options = {"targets": targets, "layers": 0, "rank": 8}
        model = plugins.load("models", "encoder_classifier", options, Model)
        model.fit_labels([str(i) for i in range(LABELS)])
        self.parts = model.module

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of `ids`, the mean over tokens in between."""
        hidden = self.parts.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        return self.parts.head(hidden.last_hidden_state.mean(1))


class Setting:
    """One model, its optimizer and a batch; every way of stepping gets its own."""

    def __init__(self, targets: tuple[str, ...], batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.module = Classifier(targets).to(device).train()
        self.batch = batch
        named = self.module.named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-3, fused=True)
        self.ids = torch.randint(1000, 20000, (batch, TOKENS), device=device)
        self.targets = torch.randint(LABELS, (batch,), device=device)

    def losses(self, module: nn.Module) -> torch.Tensor:
        """Cross entropy per example [b] by `module`: the setting's own, or as a peer wraps it."""
        return nn.functional.cross_entropy(module(self.ids), self.targets, reduction="none")


@contextmanager
def plain(setting: Setting) -> Iterator[Step]:
    def step() -> None:
        setting.optimizer.zero_grad(set_to_none=True)
        setting.losses(setting.module).mean().backward()
        setting.optimizer.step()

    yield step


@contextmanager
def ours(setting: Setting, route: str) -> Iterator[Step]:
    with private_session(
        setting.module,
        setting.parameters,
        setting.batch,
        clip=CLIP,
        noise_multiplier=NOISE,
        route=route,
    ) as session:

        def step() -> None:
            setting.optimizer.zero_grad(set_to_none=True)
            session.backward(setting.losses(setting.module), setting.batch)
            session.release(setting.optimizer)
            setting.optimizer.step()
            session.stepped()

        yield step


@contextmanager
def opacus(setting: Setting, kind: str) -> Iterator[Step]:
    from opacus.grad_sample import wrap_model
    from opacus.optimizers import DPOptimizer

    module = wrap_model(setting.module, grad_sample_mode=kind)
    optimizer = DPOptimizer(
        setting.optimizer,
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=setting.batch,
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        setting.losses(module).mean().backward()
        optimizer.step()

    yield step


@contextmanager
def ghost(setting: Setting) -> Iterator[Step]:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    module = GradSampleModuleFastGradientClipping(
        setting.module, max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        setting.optimizer,
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=setting.batch,
    )
    criterion = DPLossFastGradientClipping(
        module, optimizer, nn.CrossEntropyLoss(), loss_reduction="mean"
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(module(setting.ids), setting.targets).backward()
        optimizer.step()

    yield step


Way = Callable[[Setting], AbstractContextManager[Step]]

WAYS: dict[str, Way] = {
    "plain": plain,
    OURS: partial(ours, route="activations"),
    FALLBACK: partial(ours, route="opacus"),
    "Opacus hooks": partial(opacus, kind="hooks"),
    "Opacus ghost clipping": ghost,
    "Opacus ExpandedWeights": partial(opacus, kind="ew"),
}


def timed(step: Step, device: str) -> float:
    """Seconds of one step: of CPU time, or until a GPU is done."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(
    ways: Mapping[str, Way], targets: tuple[str, ...], batch: int, turns: int, device: str
) -> tuple[dict[str, float], float]:
    """The median ratio of every way to a plain step, and the seconds of a plain one."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        steps = {
            name: stack.enter_context(way(Setting(targets, batch, device)))
            for name, way in ways.items()
        }
        for step in steps.values():  # warm up: allocators, the guards of a first step
            step()
        names = list(steps)
        for turn in range(turns):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                times[name].append(timed(steps[name], device))
    base = times["plain"]
    found = {
        name: median([a / b for a, b in zip(own, base, strict=True)])
        for name, own in times.items()
        if name != "plain"
    }
    return found, median(base)


def measure(quick: bool, device: str) -> list[Row]:
    warnings.filterwarnings("ignore", module="torch.*|opacus.*")
    torch.set_num_threads(1)
    ways = {name: way for name, way in WAYS.items() if not (quick and name == FALLBACK)}
    rows = []
    for label, targets in TARGETS.items():
        for batch in BATCHES:
            progress(f"{label}, batch {batch}, on {device}")
            turns = (3 if quick else 30) if batch == 32 else (2 if quick else 12)
            turns = turns if device == "cpu" else 4 * turns
            found, seconds = ratios(ways, targets, batch, turns, device)
            rows.append(Row(f"{label}, batch {batch}: non-private step", 1e3 * seconds, "ms"))
            rows += [
                Row(f"{label}, batch {batch}: {name}", ratio, "x", bar(label, name, device))
                for name, ratio in found.items()
            ]
    return rows


def bar(label: str, name: str, device: str) -> float | None:
    return BARS[label] if name == OURS and device == "cpu" else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options, sys.argv[1:] = parser.parse_known_args()
    where = "on a GPU" if options.device == "cuda" else "in CPU time"
    run(f"A private step over a non-private one, {where}", partial(measure, device=options.device))
