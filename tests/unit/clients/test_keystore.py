"""Keys in a Secret or a file: nobody's change is lost, nothing but hashes is stored."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spotinference import errors
from spotinference.api.keys import KEY_PREFIX, ApiKey, KeyFile, digest
from spotinference.api.kinds import Json, Kind
from spotinference.cli.app import app
from spotinference.clients.keystore import ENTRY, Change, FileStore, KeyStore, SecretStore
from spotinference.clients.kube import Kube


class OneSecret(Kube):
    """An API server that holds one Secret and honours resourceVersion."""

    def __init__(self) -> None:
        self.secret: Json | None = None
        self._versions = itertools.count(1)

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json:
        await asyncio.sleep(0)
        if self.secret is None:
            raise errors.NotFound(name)
        return json.loads(json.dumps(self.secret))  # type: ignore[no-any-return]

    async def create(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        await asyncio.sleep(0)
        if self.secret is not None:
            raise errors.Conflict("taken")
        return self._store(body)

    async def merge_patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        patch: Json,
        *,
        subresource: str | None = None,
    ) -> Json:
        await asyncio.sleep(0)
        assert self.secret is not None
        if patch["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            raise errors.Conflict("written meanwhile")
        return self._store(self.secret | {"data": self.secret["data"] | patch["data"]})

    def _store(self, body: Json) -> Json:
        meta = body["metadata"] | {"resourceVersion": str(next(self._versions))}
        self.secret = body | {"metadata": meta}
        return self.secret


def key(name: str) -> ApiKey:
    return ApiKey(id=name, sha256=digest(name), namespace="team-a")


def adding(name: str) -> Change:
    return lambda before: KeyFile(keys=[*before.keys, key(name)])


@pytest.fixture(params=["file", "secret"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> KeyStore:
    if request.param == "file":
        return FileStore(tmp_path / "keys.json")
    return SecretStore(OneSecret(), "spotinference", "keys")


async def test_edits_at_the_same_time_lose_nothing(store: KeyStore) -> None:
    assert (await store.read()).keys == []
    names = [f"key-{number}" for number in range(5)]
    await asyncio.gather(*(store.edit(adding(name)) for name in names))
    assert sorted(k.id for k in (await store.read()).keys) == names


async def test_a_damaged_secret_is_left_as_it_is() -> None:
    kube = OneSecret()
    damaged = base64.b64encode(b'{"keys": [{"id": 3}]}').decode()
    await kube.create(
        Kind("", "v1", "Secret", "secrets"), {"metadata": {}, "data": {ENTRY: damaged}}
    )
    with pytest.raises(errors.ConfigInvalid, match=r"keys\.0\.id"):
        await SecretStore(kube, "ns", "keys").edit(adding("a"))
    assert kube.secret is not None
    assert kube.secret["data"][ENTRY] == damaged


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def listed(file: Path) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = json.loads(run("list", "--file", str(file), "--json")[0])
    return out


def test_a_key_is_shown_once_and_stored_as_a_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    limits = ["--requests-per-minute", "60", "--tier", "llama-*", "--expires", "90d"]
    out, err = run("create", "--namespace", "team-a", "--file", str(file), "--id", "k1", *limits)
    secret = out.strip()
    assert secret.startswith(KEY_PREFIX)
    assert secret not in err
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    stored = KeyFile.model_validate_json(file.read_bytes()).keys[0]
    assert stored.sha256 == digest(secret)
    assert (stored.requests_per_minute, stored.tiers) == (60, ("llama-*",))
    assert listed(file)[0]["state"] == "valid"
    assert stored.sha256 not in json.dumps(listed(file))
    assert "60 requests/min" in run("list", "--file", str(file))[0]


def test_a_revoked_key_stays_listed_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = json.loads(run("create", "--namespace", "a", "--file", str(file), "--json")[0])
    assert made["key"].startswith(KEY_PREFIX)
    run("revoke", made["id"], "--file", str(file))
    assert [(k["id"], k["state"]) for k in listed(file)] == [(made["id"], "revoked")]
    with pytest.raises(errors.ConfigInvalid, match="no key has the id 'nobody'"):
        run("revoke", "nobody", "--file", str(file))


@pytest.mark.parametrize("command", [["list"], ["revoke", "k"], ["create", "--namespace", "a"]])
def test_a_keys_file_that_cannot_be_read_is_named(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(errors.ConfigInvalid, match=f"keys file {tmp_path}: "):
        run(*command, "--file", str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--expires", "0d"),
        ("--expires", "0s"),
        ("--expires", "2020-01-01T00:00:00Z"),
        ("--expires", "soon"),
        ("--max-streams", "0"),
        ("--namespace", "Team_A"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, option: str, value: str) -> None:
    file = str(tmp_path / "keys.json")
    with pytest.raises(errors.ConfigInvalid, match=option):
        run("create", "--namespace", "team-a", "--file", file, option, value)
