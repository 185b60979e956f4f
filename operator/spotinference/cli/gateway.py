"""`spotinference gateway run`: the OpenAI-compatible gateway as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from spotinference import errors, logs
from spotinference.gateway import config
from spotinference.gateway.app import run as run_gateway
from spotinference.gateway.workers import run as run_workers

LogLevel = Literal["debug", "info", "warning", "error"]

app = typer.Typer(no_args_is_help=True, help="Run the OpenAI-compatible gateway.")


@app.callback()
def gateway() -> None:
    """Run the OpenAI-compatible gateway."""


@app.command()
def run(
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys, as a Secret mounts them.")
    ] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Default: in-cluster.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Client port; 0 chooses one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Health and metrics port; 0 chooses one.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option("--id", help="Name in demand Leases; default: the host name.")
    ] = None,
    announce: Annotated[
        Path | None, typer.Option(help="Write the addresses in use to this file, as JSON.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Gateway processes behind the port, one core each.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged.")] = "info",
) -> None:
    """Serve until SIGTERM; then finish running answers and exit."""
    settings = config.load(
        keys_file=keys_file,
        kubeconfig=kubeconfig,
        host=host,
        port=port,
        metrics_port=metrics_port,
        id=identity,
        announce=announce,
        workers=workers,
    )
    logs.setup(level=log_level)
    try:
        if settings.workers > 1 and settings.worker is None:
            uvloop.run(run_workers(settings, log_level=log_level))
        else:
            uvloop.run(run_gateway(settings))
    except* errors.SpotinferenceError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
