"""`spotinference keys create`: a new API key; only its hash is stored anywhere."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from spotinference import errors
from spotinference.api.keys import KEY_PREFIX, ApiKey, KeyFile, digest

app = typer.Typer(no_args_is_help=True, help="Make API keys for the gateway.")

KEY_BYTES = 32
SECRET_NAME = "spotinference-gateway-keys"  # noqa: S105 - the name of an object
FILE_NAME = "keys.json"


@app.callback()
def keys() -> None:
    """Make API keys for the gateway."""


@app.command()
def create(
    namespace: Annotated[str, typer.Option(help="The key opens the tiers of this namespace.")],
    identity: Annotated[
        str | None, typer.Option("--id", help="Name of the key in logs; default: chosen.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Add the hash to this keys file (made if absent).")
    ] = None,
    secret: Annotated[
        bool, typer.Option("--secret", help="Print a Secret manifest instead of the keys file.")
    ] = False,
) -> None:
    """Print a new key once, and what the gateway needs to know it."""
    text = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    try:
        key = ApiKey(
            id=identity or f"key-{secrets.token_hex(4)}", sha256=digest(text), namespace=namespace
        )
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise errors.ConfigInvalid(f"--{first['loc'][0]}: {first['msg']}") from error
    known = _read(file) if file is not None and file.exists() else []
    if any(other.id == key.id for other in known):
        raise errors.ConfigInvalid(f"--id {key.id}: {file} has a key of that id already")
    content = KeyFile(keys=[*known, key]).model_dump_json(indent=2)
    typer.echo(f"key (shown once): {text}", err=True)
    if file is not None:
        file.write_text(content + "\n")
    typer.echo(_manifest(content) if secret else content)


def _read(file: Path) -> list[ApiKey]:
    try:
        return KeyFile.model_validate_json(file.read_bytes()).keys
    except ValidationError as error:
        raise errors.ConfigInvalid(f"--file {file}: not a keys file: {error}") from error


def _manifest(content: str) -> str:
    """The Secret that the chart mounts into the gateway."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET_NAME},
            "type": "Opaque",
            "stringData": {FILE_NAME: content},
        },
        indent=2,
    )
