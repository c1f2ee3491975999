"""What a release loses and gains as what a user runs, against the float32 graph it was made of.

CLINC150's 150 intents, one client, MiniLM with LoRA of rank 8 on q and v in all layers; once with
the adapter's linear head and once with the analytic head on 2,000 random features of the frozen
encoder, both of one run. All graphs are opened in one process and one thread, and are asked in
turns; CPU time is a median of ratios. `balanced`, `fast` and `small` answer all 4,500 test
sentences, the others and the peers every third. Peers are the same model in plain torch, with
torch's dynamic quantisation, and in OpenVINO. `--data sample` asks the same of the embedded sample.
`--folder` keeps the trained run for another time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy

import numpy as np
import tomli_w
import torch
from table import Row, median, progress, run

from perennial.cli.overrides import override
from perennial.core import plugins
from perennial.core.parts import Export
from perennial.core.values import Vector
from perennial.export import apart, merge
from perennial.export.classifier import Whole, whole
from perennial.export.exporting import batches_of, export, held_out, spread, targets, tokens_of
from perennial.export.gate import Asked, Figures, measure
from perennial.export.graph import need_equal, write_graph
from perennial.export.predictor import Predictor, open_tokenizer
from perennial.export.session import open_session, scores
from perennial.simulations.simulate import simulate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "clinc150"
PROFILES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "balanced": ("balanced", {}),
    "fast": ("fast", {}),
    "small": ("small", {}),
    "blocks (8-bit MatMulNBits)": ("blocks", {}),
    "static, MinMax": ("static", {}),
    "static, percentile": ("static", {"method": "percentile"}),
    "static, KL": ("static", {"method": "kl"}),
    "fp16": ("fp16", {}),
}
LEAN = ("balanced", "fast", "small")
"""Profiles whose bars also hold with the analytic head in the graph."""

BARS: Mapping[str, Mapping[str, float]] = {
    "balanced": {"size": 27, "upper": 0.5, "agreement": 99, "changed": 0.1, "1": 0.7, "32": 0.7},
    "fast": {"size": 27, "loss": 0.5, "1": 0.55, "32": 0.45},
    "small": {"size": 22, "loss": 1.0},
}
BAD = b'{"text": "hello there"}\nnot json\n{"text": ""}\n{"other": 1}\n{"text": "\xff"}\n'


def config(folder: Path, quick: bool, sample: bool = False) -> str:
    data: dict[str, Any] = {"name": "sample"}
    if not quick and not sample:
        parts = ("train", "validation", "test")
        data = {"name": "csv", **{part: str(DATA / f"{part}.csv") for part in parts}}
    tree = {
        "run": {"name": "export", "seed": 7, "folder": str(folder)},
        "data": data,
        "domains": {"joint": True},
        "shards": {"num_clients": 1},
        "model": {
            "layers": 1 if quick else 0,
            "rank": 8,
            "targets": ["query", "value"],
        },
        "train": {"epochs": 8, "batch_size": 32, "lr": 3e-3},
        "round": {"rounds": 1},
        "continual": {"name": "analytic_head", "width": 500 if quick else 2000},
    }
    return tomli_w.dumps(tree)


def trained(folder: Path, quick: bool, sample: bool) -> Path:
    """The folder of the run, trained if it was not yet."""
    done = sorted(folder.glob("*/report.json"))
    if done:
        return done[-1].parent
    progress("training")
    target = folder / "export"
    simulate(config(folder, quick, sample), target)
    return target


class InTorch:
    """A torch module, asked as a session of the runtime is."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def run(self, names: Any, inputs: Mapping[str, Any], options: Any = None) -> list[Vector]:
        """The logits alone."""
        ids, mask = (torch.from_numpy(inputs[n]) for n in ("input_ids", "attention_mask"))
        with torch.inference_mode():
            return [self.module(ids, mask).numpy()]


class InOpenVino:
    """A graph in OpenVINO, asked as a session of the runtime is."""

    def __init__(self, path: Path) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        options["INFERENCE_PRECISION_HINT"] = "f32"
        self.model = openvino.Core().compile_model(str(path), "CPU", options)

    def run(self, names: Any, inputs: Mapping[str, Any], options: Any = None) -> list[Vector]:
        """The logits alone."""
        return [np.array(self.model(dict(inputs))[0])]


def rows_of(name: str, found: Figures, bars: Mapping[str, float]) -> Iterator[Row]:
    yield Row(f"{name}: size", 100 * found.size, "%", bars.get("size"))
    yield Row(f"{name}: accuracy lost", found.loss, "points", bars.get("loss"))
    upper = f"{name}: accuracy lost, upper end of 95 %"
    yield Row(upper, found.high, "points", bars.get("upper"))
    least = bars.get("agreement")
    yield Row(f"{name}: agreement", 100 * found.agreement, "%", least, at_least=True)
    yield Row(f"{name}: changed by the batch", 100 * found.changed, "%", bars.get("changed"))
    yield Row(f"{name}: CPU, batch 1", found.cpu_1, "x", bars.get("1"))
    yield Row(f"{name}: CPU, batches of 32", found.cpu_32, "x", bars.get("32"))


def one_head(
    head: str, source: merge.Origin, profiles: Sequence[str], quick: bool, peers: bool
) -> Iterator[Row]:
    found = merge.restored(source)
    if head == "linear":
        found = merge.Restored(found.config, found.model, None)
    held, model = held_out(found), whole(found.model, found.answer)
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"{head}: writing the graph")
        graph = Path(scratch) / "float32.onnx"
        write_graph(model, graph)
        tokens = tokens_of(model, Path(scratch) / "tokenizer.json", held.test)
        looked = spread(len(tokens), 64)
        want = found.logits(held.test.take(looked))
        gap = need_equal(model, graph, [tokens[i] for i in looked], want)
        yield Row(f"{head}: logits of graph and torch apart", gap, "", 1e-3)
        asked = Asked(tokens, targets(held.test, model.labels), held.test.domains)
        reference = open_session(graph)
        right = scores(reference, tokens, 32).argmax(1) == asked.targets
        yield Row(f"{head}: float32 accuracy", 100 * float(right.mean()), "%")
        third = Asked(asked.tokens[::3], asked.targets[::3], asked.domains[::3])
        ask = partial(measure, reference=reference, asked=asked)
        ask_some = partial(measure, reference=reference, asked=third)
        for name in profiles:
            progress(f"{head}: {name}")
            plugin, options = PROFILES[name]
            how: Export = plugins.load("export", plugin, options, Export)
            small = Path(scratch) / f"small{how.suffix}"
            reader = Predictor(None, open_tokenizer(Path(scratch) / "tokenizer.json"), (), 1.0)
            drawn = batches_of(reader.tokens(held.validation.texts), how.batches)
            how.write(graph, lambda drawn=drawn: drawn, small)
            sizes = (small.stat().st_size, graph.stat().st_size)
            bars = {} if quick else BARS.get(name, {})
            how_many = ask if name in LEAN else ask_some
            yield from rows_of(f"{head}, {name}", how_many(open_session(small), sizes=sizes), bars)
        for name, session in _peers(model, graph) if peers else ():
            progress(f"{head}: {name}")
            yield from list(rows_of(f"{head}, {name}", ask_some(session, sizes=(1, 1)), {}))[1:]
        if head == "linear":
            yield from _apart(found, asked, reference, Path(scratch), quick)


def _peers(model: Whole, graph: Path) -> Iterator[tuple[str, Any]]:
    yield "plain torch", InTorch(model.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {torch.nn.Linear}
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model.module), kinds)
    yield "torch dynamic quantisation", InTorch(small)
    yield "OpenVINO, float32", InOpenVino(graph)


def _apart(
    found: merge.Restored, asked: Asked, reference: Any, scratch: Path, quick: bool
) -> Iterator[Row]:
    progress("adapter apart")
    base, adapter = scratch / "base.onnx", scratch / "update.onnx_adapter"
    apart.write_base(found.model, base)
    held = apart.parameters(found.model)
    identity = found.model.identity()
    apart.write_adapter(held, base, found.model.labels, adapter, identity=identity)
    loaded = apart.open_base(base)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        loaded.swap(adapter)
        seconds.append(time.perf_counter() - start)
    mine = loaded.logits(asked.tokens).argmax(1) == asked.targets
    theirs = scores(reference, asked.tokens, 32).argmax(1) == asked.targets
    lost = 100 * (theirs.mean() - mine.mean())
    yield Row("adapter apart: one domain update", adapter.stat().st_size / 1e3, "kB", 300)
    yield Row("adapter apart: swap", 1e3 * median(seconds), "ms", 1.0)
    yield Row("adapter apart: accuracy lost", lost, "points", None if quick else 0.5)


def _predict(source: merge.Origin, scratch: Path, quick: bool) -> Iterator[Row]:
    progress("perennial predict")
    place = scratch / "exported"
    outcome = export(source, place, "balanced", progress)
    if outcome.artefact is None:
        progress(f"the gate kept it out: {[c.words for c in outcome.checks if not c.holds]}")
        return
    held = held_out(merge.restored(source))
    texts = scratch / "texts.txt"
    texts.write_text("\n".join(held.test.texts) + "\n")
    command = [sys.executable, "-m", "perennial", "predict", str(place), "--json"]
    first = scratch / "first.txt"
    first.write_text(held.test.texts[0] + "\n")
    spent = [_cpu([*command, str(first)]) for _ in range(3 if quick else 7)]
    yield Row("predict: start, CPU time", median(spent), "s", 2.0)
    out = subprocess.run([*command, str(texts)], capture_output=True, check=True).stdout
    labels = [json.loads(line)["label"] for line in out.decode().splitlines()]
    right = np.mean([a == b for a, b in zip(labels, held.test.targets, strict=True)])
    apart_by = abs(100 * float(right) - 100 * outcome.figures.accuracy)
    yield Row("predict: accuracy beside that of the gate", apart_by, "points", 0.05)
    code = (
        "import sys; from perennial.cli import main; main.sys.argv = sys.argv\n"
        "try: main.run()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, "predict", str(place), str(first)], capture_output=True
    ).returncode
    yield Row("predict: torch is loaded", float(loaded), "", 0.0)
    bad = BAD + b'{"text": "' + b"x" * 2**20 + b'"}\n{"text": "and on"}\n'
    got = subprocess.run([*command, "--jsonl"], input=bad, capture_output=True)
    told = [json.loads(line) for line in got.stdout.decode().splitlines()]
    errors = [line for line in told if "error" in line]
    yield Row("predict: of 5 bad lines, named", float(len(errors)), "", 5.0, at_least=True)
    yield Row(
        "predict: of 2 good lines among them, answered",
        float(len(told) - len(errors)),
        "",
        2.0,
        at_least=True,
    )


def _cpu(command: Sequence[str]) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(
    quick: bool,
    kept: str,
    heads: Sequence[str],
    profiles: Sequence[str],
    peers: bool,
    sample: bool,
) -> list[Row]:
    torch.set_num_threads(1)
    place: Callable[[], Any] = (
        tempfile.TemporaryDirectory if not kept else lambda: nullcontext(kept)
    )
    with place() as folder, tempfile.TemporaryDirectory() as scratch:
        there = trained(Path(folder), quick, sample)
        source = merge.origin(there, (there / merge.CONFIG).read_text(), {"run": there.name})
        rows: list[Row] = []
        if quick or sample:  # a model with many close answers, which the gate would keep out
            loose = ["export.min_agreement=0.8", "export.max_loss=10.0"]
            source = replace(source, text=override(source.text, [*loose, "export.max_cpu_32=2.0"]))
        for head in heads[-1:] if quick else heads:
            names = LEAN[:1] if quick else profiles if head == "linear" else LEAN
            rows += one_head(head, source, names, quick, peers and not quick)
        return [*rows, *_predict(source, Path(scratch), quick)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--folder", default="", help="keeps the trained run")
    parser.add_argument("--heads", default="linear,analytic")
    parser.add_argument("--profiles", default=";".join(PROFILES), help="of the linear head")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--data", default="clinc150", choices=("clinc150", "sample"))
    given, sys.argv[1:] = parser.parse_known_args()
    run(
        "A release as what a user runs",
        lambda quick: measured(
            quick,
            given.folder,
            given.heads.split(","),
            given.profiles.split(";"),
            not given.no_peers,
            given.data == "sample",
        ),
    )
