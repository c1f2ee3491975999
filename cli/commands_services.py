"""The arguments of the commands that run as services, and of what makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .configs import text_of

services = typer.Typer()


@services.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
    config: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this form at run time
        typer.Option(help="The config to begin with; the embedded sample without.", metavar="FILE"),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, max=9999, help="How many clients.")] = 3,
    host: Annotated[str, typer.Option(help="By which clients reach the server.")] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the server.")] = 0,
    days: Annotated[int, typer.Option(min=1, help="For which certificates hold.")] = 365,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="All on this machine, to try it.")
    ] = False,
) -> None:
    """Make keys, certificates and configs of a server, its clients and a key holder."""
    from .provisioning import make

    text = "" if config is None else text_of(config, None)
    make(folder, text, clients=clients, host=host, port=port, days=days, loopback=loopback)


@services.command()
def server(
    file: Annotated[Path, typer.Argument(help="The server's own config.", metavar="FILE")],
) -> None:
    """Run the server that clients connect to, until stopped."""
    from .service import serve

    serve(file)


@services.command()
def client(
    file: Annotated[Path, typer.Argument(help="The client's own config.", metavar="FILE")],
) -> None:
    """Run a client beside its data, until stopped."""
    from .service import attend

    attend(file)


@services.command()
def up(
    folder: Annotated[Path, typer.Argument(help="A fleet of `init --loopback`.", metavar="DIR")],
    updates: Annotated[
        int, typer.Option(min=0, help="Make so many updates, then stop; run on without.")
    ] = 0,
) -> None:
    """Run all parties of a fleet on this machine, each a process of its own."""
    from .fleet_up import up as start

    start(folder, updates)


@services.command(hidden=True)
def worker(
    address: Annotated[str, typer.Option(help="Where the node has its tasks.")],
    secret: Annotated[Path, typer.Option(help="File of what the node asks of its worker.")],
    ready: Annotated[Path, typer.Option(help="A file that is there while the node answers.")],
    allow: Annotated[list[str], typer.Option(help="SHA-256 of a bundle that may be run.")],
) -> None:
    """Take a node's tasks, one by one, with model and data kept loaded."""
    from .service import work

    work(address, secret, ready, allow)


@services.command()
def keyholder(
    file: Annotated[Path, typer.Argument(help="The key holder's own config.", metavar="FILE")],
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop too when standard input ends.")
    ] = False,
) -> None:
    """Hold the secret key and open sums, apart from server and clients, until stopped."""
    from .keyholder import hold

    hold(file, with_parent=with_parent)
