"""The root of the command line: one file per command, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from spotinference import __version__, errors

COMMANDS = {
    "dev": ("spotinference.cli.dev", "A Kubernetes with simulated spot GPU nodes on this machine."),
    "demo": ("spotinference.cli.demo", "A streamed answer that survives its GPU, narrated."),
    "operator": ("spotinference.cli.operator", "Run the operator."),
    "node-watch": (
        "spotinference.cli.node_watch",
        "On each spot node: from the cloud's metadata to a node condition.",
    ),
    "gateway": ("spotinference.cli.gateway", "Run the OpenAI-compatible gateway."),
    "keys": ("spotinference.cli.keys", "Make, list and revoke API keys for the gateway."),
    "usage": ("spotinference.cli.usage", "Read the usage records that a gateway has spooled."),
    "weights": ("spotinference.cli.weights", "Fetch model weights into a cache volume."),
    "simulate": ("spotinference.cli.simulate", "Replay traces through the operator's decisions."),
    "crds": ("spotinference.cli.crds", "Print or write the CustomResourceDefinitions."),
}
"""Command: (module with a Typer `app`, one line of help)."""


class LazyGroup(TyperGroup):
    """Loads a command's module only when it is used: `--help` and tab completion stay fast.

    The parameters are `Any` because Typer vendors its own click, whose types are private.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Serve LLMs with stock vLLM on spot GPUs: operator, gateway and embedded cluster.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"spotinference {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Serve LLMs with stock vLLM on spot GPUs."""


def main() -> None:
    """Entry point: an error of ours is one sentence on stderr and exit 1, never a traceback."""
    try:
        app()
    except errors.SpotinferenceError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
