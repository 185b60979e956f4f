"""Keys: what one opens, until when, and that a changed file counts at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spotinference.api.keys import ApiKey, KeyFile, digest
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import CHAT, KEY, OTHER_KEY, Bench, bench, chat


def file_of(**fields: object) -> str:
    key = ApiKey.model_validate(
        {"id": "k", "sha256": digest(KEY), "namespace": NAMESPACE, **fields}
    )
    other = ApiKey(id="other", sha256=digest(OTHER_KEY), namespace=NAMESPACE)
    return KeyFile(keys=[key, other]).text()


async def rekey(b: Bench, **fields: object) -> None:
    """Gives the test's key these fields; the gateway knows them on return."""
    b.keys_file.write_text(file_of(**fields))
    ring = b.gateway.server._keys
    await eventually(lambda: ring._text == b.keys_file.read_bytes(), 5, "keys re-read")


@pytest.mark.fault(64)
async def test_a_key_opens_only_the_tiers_that_it_names() -> None:
    async with bench() as b:
        for name in ("demo", "demo-large", "secret"):
            await b.tier(name)
        await b.replica("demo")
        await rekey(b, tiers=["demo*"])
        async with b.http() as session, b.http(OTHER_KEY) as other:
            async with session.get("/v1/models") as response:
                names = [model["id"] for model in (await response.json())["data"]]
            assert names == ["demo", "demo-large"]
            async with session.post(CHAT, json=chat(model="secret")) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "model_not_found"
            assert not b.kube.leases()
            async with session.post(CHAT, json=chat()) as response:
                assert response.status == 200
                await response.read()
            async with other.get("/v1/models") as response:
                assert len((await response.json())["data"]) == 3


@pytest.mark.fault(68)
async def test_an_expired_key_is_told_so_and_wakes_nothing() -> None:
    async with bench() as b:
        await b.tier("demo")
        over = datetime.now(UTC) - timedelta(seconds=1)
        await rekey(b, expires=over.isoformat())
        async with b.http() as session, session.post(CHAT, json=chat()) as response:
            assert response.status == 401
            assert response.headers["x-should-retry"] == "false"
            error = (await response.json())["error"]
        assert error["code"] == "key_expired"
        assert "'k'" in error["message"]
        assert not b.kube.leases()


async def test_a_revoked_key_is_told_so_without_a_restart() -> None:
    async with bench() as b:
        await b.tier("demo")
        await rekey(b, revoked="2026-11-01T00:00:00Z")
        async with b.http() as session, session.get("/v1/models") as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "key_revoked"
