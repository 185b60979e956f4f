"""`spotinference usage list|sum`: the usage records that wait in a gateway's spool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spotinference import errors
from spotinference.gateway import spool

HELP = """Read the usage records that a gateway has spooled.

A gateway writes one record per attempt at an engine. Those that were not sent to the configured
URL yet, or all of them where none is configured, wait in its spool. Reading changes nothing and is
safe beside a running gateway.

\b
  kubectl exec -n spotinference deploy/spotinference-gateway -- spotinference usage sum
  spotinference usage list --spool /var/lib/spotinference/usage --json | jq .completion_tokens
"""

app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode=None)

COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens", "replayed_tokens")

SpoolOption = Annotated[
    Path,
    typer.Option(
        "--spool",
        envvar="SPOTINFERENCE_GATEWAY_USAGE_SPOOL",
        help="The gateway's folder for usage records.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.callback()
def usage() -> None:
    """Read the usage records that a gateway has spooled."""


@app.command("list")
def list_(
    *,
    directory: SpoolOption,
    request: Annotated[str | None, typer.Option(help="Only of this request id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this namespace.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One line per attempt, as they were written; --json prints the records as they are sent."""
    for record in _read(directory):
        if request not in {None, record.get("request")} or tenant not in {
            None,
            record.get("tenant"),
        }:
            continue
        if as_json:
            typer.echo(json.dumps(record))
        else:
            typer.echo(
                f"{record['at']} {record['request']}/{record['attempt']} {record['tenant']} "
                f"{record['key']} {record['tier']} {record['replica']} {record['status']} "
                f"prompt={record['prompt_tokens']} completion={record['completion_tokens']} "
                f"replayed={record['replayed_tokens']} total_s={record['total_s']}"
            )


@app.command("sum")
def sum_(
    *,
    directory: SpoolOption,
    by: Annotated[
        list[str] | None,
        typer.Option(help="A field to sum by, may be given several times. Default: tenant, tier."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Attempts and tokens, summed up by tenant and tier or whatever is asked for."""
    fields = by or ["tenant", "tier"]
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    for record in _read(directory):
        if missing := [name for name in fields if name not in record]:
            raise errors.ConfigInvalid(
                f"--by {missing[0]}: records have no such field; they have "
                f"{', '.join(sorted(record))}."
            )
        row = sums.setdefault(
            tuple(str(record[name]) for name in fields), dict.fromkeys(("attempts", *COUNTED), 0)
        )
        row["attempts"] += 1
        for name in COUNTED:
            row[name] += record[name]
    if as_json:
        rows = [dict(zip(fields, key, strict=True)) | row for key, row in sorted(sums.items())]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in (*fields, "attempts", *COUNTED):
        table.add_column(title.upper().replace("_", " "))
    for key, row in sorted(sums.items()):
        table.add_row(*key, *(str(value) for value in row.values()))
    Console(width=200).print(table)


def _read(directory: Path) -> Iterator[dict[str, Any]]:
    if not directory.is_dir():
        raise errors.ConfigInvalid(
            f"--spool {directory}: no such folder. A gateway keeps its records in "
            "SPOTINFERENCE_GATEWAY_USAGE_SPOOL (chart: /var/lib/spotinference/usage)."
        )
    yield from spool.read(directory)
