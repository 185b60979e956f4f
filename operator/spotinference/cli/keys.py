"""`spotinference keys create|list|revoke`: API keys of the gateway; only hashes are stored."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from spotinference import errors
from spotinference.api import durations, times
from spotinference.api.keys import KEY_PREFIX, ApiKey, KeyFile, digest
from spotinference.api.rules import DNS_LABEL
from spotinference.clients import keystore
from spotinference.clients.clock import SystemClock
from spotinference.clients.keystore import FileStore, KeyStore

HELP = """Make, list and revoke API keys for the gateway.

Keys live in the Secret that the gateway mounts (the chart's value `gateway.keysSecret`), or in a
file with --file. Only their hashes are stored; the key itself is shown once, when it is made.
A running gateway takes changes over by itself: within a second from a file, within the
kubelet's sync of about a minute from a Secret.

\b
  spotinference keys create --namespace team-a --requests-per-minute 600 --expires 90d
  spotinference keys list
  spotinference keys revoke key-1f2e3d4c
"""

app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode=None)

KEY_BYTES = 32
SECRET_NAME = "spotinference-gateway-keys"  # noqa: S105 - the name of an object
SECRET_NAMESPACE = "spotinference"  # noqa: S105 - where the README installs the chart
MAX_REVOKED = 1000
"""Revoked keys that are remembered, so that their users are told; the oldest are forgotten."""

FileOption = Annotated[
    Path | None, typer.Option("--file", help="A keys file instead of the cluster's Secret.")
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        envvar="KUBECONFIG",
        help="Whose cluster; default: ~/.kube/config, else the pod's ServiceAccount.",
    ),
]
SecretNamespaceOption = Annotated[
    str, typer.Option("--secret-namespace", help="The namespace the chart is installed in.")
]
SecretNameOption = Annotated[
    str, typer.Option("--secret-name", help="The chart's value gateway.keysSecret.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Wait = Literal["heartbeat", "strict", "reject"]
TenantOption = Annotated[str, typer.Option(help="The tenant: the key opens its tiers.")]
IdOption = Annotated[
    str | None, typer.Option("--id", help="Name of the key in lists and logs; default: chosen.")
]
TierOption = Annotated[
    list[str] | None,
    typer.Option(help="Only this tier or model; * and ? match. May be given several times."),
]
RequestsOption = Annotated[int | None, typer.Option(help="In any minute.")]
TokensOption = Annotated[
    int | None, typer.Option(help="Prompt and completion together, in any minute.")
]
StreamsOption = Annotated[
    int | None, typer.Option(help="Requests answered or waiting at the same time.")
]
BudgetOption = Annotated[
    int | None, typer.Option(help="Prompt and completion together, per calendar month (UTC).")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(help="When it ends: 90d, 12h, or a time such as 2027-01-31T00:00:00Z."),
]
WaitOption = Annotated[
    Wait,
    typer.Option(
        help="While a tier wakes: heartbeat (200 and comments), strict (headers held until the "
        "answer or a true 504) or reject (503 at once)."
    ),
]
KeepAliveOption = Annotated[
    bool, typer.Option("--keep-alive", help="Whitespace before answers that are not streamed.")
]


@app.callback()
def keys() -> None:
    """Make, list and revoke API keys for the gateway."""


@app.command()
def create(
    *,
    namespace: TenantOption,
    identity: IdOption = None,
    tier: TierOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    max_streams: StreamsOption = None,
    monthly_tokens: BudgetOption = None,
    expires: ExpiresOption = None,
    wait: WaitOption = "heartbeat",
    keep_alive: KeepAliveOption = False,
    file: FileOption = None,
    kubeconfig: KubeconfigOption = None,
    secret_namespace: SecretNamespaceOption = SECRET_NAMESPACE,
    secret_name: SecretNameOption = SECRET_NAME,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once.

    The key alone goes to stdout, so KEY=$(spotinference keys create --namespace team-a) works.
    """
    text = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    try:
        DNS_LABEL.require(namespace)
    except ValueError as error:
        raise errors.ConfigInvalid(f"--namespace {namespace!r}: {DNS_LABEL.message}") from error
    key = _checked(
        id=identity or f"key-{secrets.token_hex(4)}",
        sha256=digest(text),
        namespace=namespace,
        tiers=tier or None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_streams=max_streams,
        monthly_tokens=monthly_tokens,
        expires=_expiry(expires) if expires is not None else None,
        wait=wait,
        keep_alive=keep_alive,
    )

    def add(before: KeyFile) -> KeyFile:
        if any(other.id == key.id for other in before.keys):
            raise errors.ConfigInvalid(
                f"--id {key.id}: there is a key of that id already. Choose another, or see "
                "`spotinference keys list`."
            )
        return KeyFile(keys=[*before.keys, key])

    where = _Where(file, kubeconfig, secret_namespace, secret_name)
    asyncio.run(where.edit(add))
    if as_json:
        typer.echo(json.dumps({"key": text, **_shown(key)}, indent=2))
        return
    typer.echo(f"{key.id}: shown this once, only its hash is stored in {where}", err=True)
    typer.echo(text)


@app.command("list")
def list_(
    *,
    namespace: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    file: FileOption = None,
    kubeconfig: KubeconfigOption = None,
    secret_namespace: SecretNamespaceOption = SECRET_NAMESPACE,
    secret_name: SecretNameOption = SECRET_NAME,
    as_json: JsonOption = False,
) -> None:
    """List the keys: what each opens, its limits, and whether it is in force."""
    where = _Where(file, kubeconfig, secret_namespace, secret_name)
    known = [k for k in asyncio.run(where.read()).keys if namespace in {None, k.namespace}]
    if as_json:
        typer.echo(json.dumps([_shown(key) for key in known], indent=2))
        return
    if not known:
        typer.echo(f"no keys in {where}", err=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("ID", "NAMESPACE", "STATE", "EXPIRES", "TIERS", "LIMITS"):
        table.add_column(title, overflow="fold")
    for key in known:
        table.add_row(
            key.id, key.namespace, _state(key),
            times.to_text(key.expires) if key.expires else "never",
            ", ".join(key.tiers) if key.tiers else "all", _limits(key),
        )  # fmt: skip
    Console(width=None if os.isatty(1) else 200).print(table)


@app.command()
def revoke(
    identity: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    *,
    file: FileOption = None,
    kubeconfig: KubeconfigOption = None,
    secret_namespace: SecretNamespaceOption = SECRET_NAMESPACE,
    secret_name: SecretNameOption = SECRET_NAME,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good: requests with it get 401 `key_revoked`; answers that run end well."""
    now = SystemClock().now().replace(microsecond=0)
    found: list[ApiKey] = []

    def mark(before: KeyFile) -> KeyFile:
        found[:] = [key for key in before.keys if key.id == identity]
        if not found:
            raise errors.ConfigInvalid(
                f"no key has the id {identity!r}; `spotinference keys list` shows them."
            )
        found[:] = [key.model_copy(update={"revoked": key.revoked or now}) for key in found]
        after = [found[0] if key.id == identity else key for key in before.keys]
        return KeyFile(keys=_forget(after))

    where = _Where(file, kubeconfig, secret_namespace, secret_name)
    asyncio.run(where.edit(mark))
    typer.echo(json.dumps(_shown(found[0]), indent=2) if as_json else f"{identity}: revoked")


@dataclass(frozen=True, slots=True)
class _Where:
    file: Path | None
    kubeconfig: Path | None
    namespace: str
    name: str

    def __str__(self) -> str:
        return str(self.file) if self.file else f"Secret {self.namespace}/{self.name}"

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[KeyStore]:
        if self.file is not None:
            yield FileStore(self.file)
            return
        home = Path.home() / ".kube" / "config"
        chosen = self.kubeconfig or (home if home.exists() else None)
        async with keystore.secret_store(chosen, self.namespace, self.name) as store:
            yield store

    async def read(self) -> KeyFile:
        async with self._open() as store:
            return await store.read()

    async def edit(self, change: keystore.Change) -> None:
        async with self._open() as store:
            await store.edit(change)


def _checked(**fields: Any) -> ApiKey:
    try:
        return ApiKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        option = {"tiers": "tier"}.get(option, option)
        raise errors.ConfigInvalid(f"--{option}: {first['msg']}") from error


def _expiry(text: str) -> datetime:
    now = SystemClock().now().replace(microsecond=0)
    try:
        if text.endswith("d") and text[:-1].isdigit():
            at = now + timedelta(days=int(text[:-1]))
        elif text[:1].isdigit() and text[-1:] in {"h", "m", "s"}:
            at = now + timedelta(seconds=durations.seconds(text))
        else:
            at = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise errors.ConfigInvalid(
            f"--expires {text!r}: write 90d, 12h, or a time such as 2027-01-31T00:00:00Z."
        ) from error
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    if at <= now:
        raise errors.ConfigInvalid(f"--expires {text!r}: that is over already.")
    return at.astimezone(UTC)


def _forget(known: list[ApiKey]) -> list[ApiKey]:
    revoked = sorted((k for k in known if k.revoked), key=lambda k: str(k.revoked))
    forgotten = {key.id for key in revoked[:-MAX_REVOKED]}
    return [key for key in known if key.id not in forgotten]


def _state(key: ApiKey) -> str:
    if key.revoked is not None:
        return "revoked"
    return "expired" if key.expired(SystemClock().now()) else "valid"


def _limits(key: ApiKey) -> str:
    parts = [
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.max_streams, "streams"),
        (key.monthly_tokens, "tokens/month"),
    ]
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None) or "none"


def _shown(key: ApiKey) -> dict[str, Any]:
    """A key without its hash: of no use to whoever reads a log of this."""
    fields = key.model_dump(mode="json", exclude={"sha256"}, exclude_none=True)
    return {**fields, "state": _state(key)}
