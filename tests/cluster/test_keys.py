"""`spotinference keys` against a real API server: the Secret that the chart mounts."""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import pytest

from spotinference import errors
from spotinference.api.keys import KeyFile
from spotinference.api.kinds import CONFIG_MAP, SECRET
from spotinference.cli.keys import SECRET_NAME
from spotinference.clients.clock import SystemClock
from spotinference.clients.kube import Kube
from spotinference.gateway.budgets import Budgets
from tests.support.cluster import LiveCluster

pytestmark = pytest.mark.cluster


async def keys(cluster: LiveCluster, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spotinference", "keys", *arguments,
        "--kubeconfig", str(cluster.paths.kubeconfig),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_keys_made_at_the_same_time_all_reach_the_secret(cluster: LiveCluster) -> None:
    await asyncio.gather(
        *(keys(cluster, "create", "--namespace", "team-a", "--id", f"k{i}") for i in range(3))
    )
    await keys(cluster, "revoke", "k1")
    shown = json.loads(await keys(cluster, "list", "--json"))
    assert sorted((k["id"], k["state"]) for k in shown) == [
        ("k0", "valid"), ("k1", "revoked"), ("k2", "valid"),
    ]  # fmt: skip
    secret = await cluster.kube.get(SECRET, SECRET_NAME, "spotinference")
    stored = KeyFile.model_validate_json(base64.b64decode(secret["data"]["keys.json"]))
    assert {key.id for key in stored.keys} == {"k0", "k1", "k2"}


async def test_gateways_sum_up_months_with_the_rights_they_have(cluster: LiveCluster) -> None:
    path = cluster.paths.gateway_kubeconfig
    async with await Kube.connect(field_manager="test", kubeconfig=path) as kube:
        gateways = [Budgets(SystemClock(), f"gw-{n}", kube, "spotinference") for n in range(2)]
        for gateway in gateways:
            gateway.add("team-a", 7)
        await asyncio.gather(*(gateway.exchange() for gateway in gateways))
        for gateway in gateways:
            gateway.spent("team-a")
            await gateway.exchange()
        assert [gateway.spent("team-a") for gateway in gateways] == [14, 14]
        with pytest.raises(errors.Forbidden):
            await kube.list(CONFIG_MAP, "spotinference")
        with pytest.raises(errors.Forbidden):
            await kube.get(CONFIG_MAP, "kube-root-ca.crt", "spotinference")
