"""`perennial export` and `perennial predict`: their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .commands_releases import HOME, Home
from .configs import Settings

exports = typer.Typer()

Target = Annotated[
    str,
    typer.Argument(
        help="A release's number, or the name or folder of a run; the release in service without.",
        metavar="RELEASE|RUN",
    ),
]


@exports.command()
def export(
    target: Target = "",
    profile: Annotated[
        str,
        typer.Option(
            help="balanced, fast, small, static, blocks, fp16 or fp32; of a causal model "
            "gguf-q8_0, gguf-f16 or onnx-cache."
        ),
    ] = "",
    home: Home = HOME,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    merged: Annotated[
        bool, typer.Option("--merged", help="Put the merged model beside it, in safetensors.")
    ] = False,
    settings: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Show the result as JSON.")] = False,
) -> None:
    """Make a release one small ONNX file, and hold it against its gate.

    Exit code 3: the gate kept it out, and what was exported before is as it was.
    """
    from .exporting import export as start

    code = start(target, profile, home, folder, settings or [], merged=merged, as_json=json)
    if code:
        raise typer.Exit(code)


@exports.command()
def predict(
    target: Annotated[
        str,
        typer.Argument(
            help="A release's number, a run, or the folder of an export.", metavar="RELEASE|RUN"
        ),
    ],
    file: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Argument(help="A text a line, or .jsonl with a key text; a pipe without."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Which export of it.")] = "balanced",
    top: Annotated[int, typer.Option(min=1, help="How many labels of each text.")] = 1,
    home: Home = HOME,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Lines of the input are JSON.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Of the CPU.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Answer texts with an exported release: label, score, out-of-scope score. Loads no torch.

    Exit code 1: some lines were not answered; each has its error on stderr (with --json, in its
    place).
    """
    from .predicting import predict as start

    lines = jsonl or (file is not None and file.suffix == ".jsonl")
    whole = start(
        target, file, profile, home, folder, top=top, jsonl=lines, threads=threads, as_json=json
    )
    if not whole:
        raise typer.Exit(1)
