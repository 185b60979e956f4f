"""Checks at start, so that a missing CRD or right is one sentence instead of a deaf operator.

Kopf retries what is forbidden for a minute and ignores what does not exist; both look like an
operator that runs and does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from spotinference import errors
from spotinference.api.kinds import CRD, DEPLOYMENT, EVENT, LEASE, POD, POOL, TIER, Kind
from spotinference.clients.kube import Kube
from spotinference.controller.nodeevents import NAMESPACE as NODE_EVENTS

log = structlog.get_logger(__name__)

RETRY_S = 1.0


async def check(kube: Kube, watched: Sequence[Kind], namespace: str, deadline_s: float) -> None:
    """Waits for the API server, then demands CRDs and rights; `ConfigInvalid` says what to do."""
    try:
        async with asyncio.timeout(deadline_s):
            await _reachable(kube)
            await _crds(kube)
            await _rights(kube, watched, namespace)
    except TimeoutError as error:
        raise errors.ConfigInvalid(
            f"the API server did not answer within {deadline_s:.0f} s: "
            "check the address in the kubeconfig and the network"
        ) from error


async def _reachable(kube: Kube) -> None:
    while True:
        try:
            await kube.allowed("list", TIER)
        except errors.Retryable as error:
            log.warning("start.waiting", error=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            return


async def _crds(kube: Kube) -> None:
    for kind in (TIER, POOL):
        name = f"{kind.plural}.{kind.group}"
        try:
            crd = await kube.get(CRD, name)
        except errors.NotFound as error:
            raise errors.ConfigInvalid(
                f"the CustomResourceDefinition {name} does not exist: install it with "
                "`spotinference crds | kubectl apply --server-side -f -` or with the Helm chart"
            ) from error
        served = [v["name"] for v in crd["spec"]["versions"] if v.get("served")]
        if kind.version not in served:
            raise errors.ConfigInvalid(
                f"the CustomResourceDefinition {name} serves {', '.join(served) or 'no version'}, "
                f"this operator needs {kind.version}: upgrade the CRDs or the operator"
            )


async def _rights(kube: Kube, watched: Sequence[Kind], namespace: str) -> None:
    wanted: list[tuple[str, Kind, str | None]] = [
        (verb, kind, None) for kind in watched for verb in ("list", "watch")
    ]
    wanted += [(verb, LEASE, namespace) for verb in ("get", "create", "patch")]
    wanted += [(verb, EVENT, NODE_EVENTS) for verb in ("list", "watch")]
    wanted += [("patch", DEPLOYMENT, None), ("delete", POD, None)]
    answers = await asyncio.gather(*(kube.allowed(*want) for want in wanted))
    missing = [
        f"{verb} {kind.plural}{f'.{kind.group}' if kind.group else ''}"
        + (f" in namespace {where}" if where else "")
        for (verb, kind, where), allowed in zip(wanted, answers, strict=True)
        if not allowed
    ]
    if missing:
        raise errors.Forbidden(
            f"the operator's identity may not {', '.join(missing)}: bind the ClusterRole "
            "spotinference-operator of the Helm chart to its ServiceAccount"
        )
