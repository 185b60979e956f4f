"""`spotinference dev engine`: the real vLLM on the CPU, and the demo model it serves."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from spotinference.devcluster import demo_model, engine_install
from spotinference.devcluster.progress import Progress

app = typer.Typer(no_args_is_help=True, help="The engine that embedded clusters run.")

VllmOption = Annotated[
    str | None,
    typer.Option("--vllm", help=f"A vllm executable instead; also ${engine_install.ENV_VLLM}."),
]


@app.callback()
def engine() -> None:
    """The engine that embedded clusters run."""


@app.command()
def install(
    vllm: VllmOption = None,
    model: Annotated[bool, typer.Option(help="Also train the demo model.")] = True,
) -> None:
    """Install vLLM for the CPU into the cache (once), and train the demo model (once)."""
    with Progress() as progress:
        if vllm or os.environ.get(engine_install.ENV_VLLM):
            path = engine_install.engine_path(vllm)
        else:
            with progress.task("vLLM for the CPU") as task:
                path = engine_install.install(task.say)
        if model:
            with progress.task("demo model") as task:
                demo_model.ensure(engine_install.engine_python(path), task.say)
    typer.echo(path)


@app.command()
def path(vllm: VllmOption = None) -> None:
    """Print the vllm executable that `--engine vllm` uses."""
    typer.echo(engine_install.engine_path(vllm))
