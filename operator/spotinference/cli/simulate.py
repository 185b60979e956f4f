"""`spotinference simulate`: replay traces through the operator's own decisions."""

from __future__ import annotations

import typer

from spotinference.cli import simulate_autoscale, simulate_spot, simulate_tier

HELP = """Replay traces through the operator's own decisions.

The functions that place and scale replicas in a cluster decide here too, on a virtual clock: weeks
of a tier take seconds, the same seed gives the same answer, and a trace of your own shows what a
policy would have cost you. Every command prints a table, or one JSON object with --json.
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=HELP)


@app.callback()
def simulate() -> None:
    """Replay traces through the operator's own decisions."""


app.command("spot", help=simulate_spot.HELP)(simulate_spot.spot)
app.command("autoscale", help=simulate_autoscale.HELP)(simulate_autoscale.autoscale)
app.command("tier")(simulate_tier.command)
