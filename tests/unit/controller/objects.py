"""Small Kubernetes objects for tests of the operator's shell."""

from __future__ import annotations

from spotinference.api import names
from spotinference.api.kinds import DEPLOYMENT, POD, TIER, Json, Kind
from spotinference.core.observed import TierRef

REF = TierRef("default", "demo")
TIER_UID = "tier-uid"


def obj(
    kind: Kind,
    name: str,
    *,
    uid: str = "",
    version: int = 1,
    namespace: str | None = "default",
    labels: dict[str, str] | None = None,
    **body: object,
) -> Json:
    meta: Json = {"name": name, "uid": uid or f"{name}-uid", "resourceVersion": str(version)}
    if namespace is not None and kind.namespaced:
        meta["namespace"] = namespace
    if labels is not None:
        meta["labels"] = labels
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **body}


def tier(*, version: int = 1, uid: str = TIER_UID, **spec: object) -> Json:
    full: Json = {
        "model": {"source": "pvc://models/tiny"},
        "placement": {"pools": ["spot"]},
        **spec,
    }
    body = obj(TIER, REF.name, uid=uid, version=version, spec=full)
    body["metadata"]["generation"] = 1
    return body


def engine_pod(
    name: str = "pod-1",
    *,
    node: str | None = "node-1",
    ready: bool = True,
    version: int = 1,
    ip: str = "127.0.0.1",
) -> Json:
    labels = names.tier_labels(REF.name, names.ROLE_ENGINE) | {
        names.LABEL_POOL: "spot",
        names.LABEL_ZONE: "zone-a",
        "pod-template-hash": "abc",
    }
    body = obj(
        POD,
        name,
        version=version,
        labels=labels,
        spec={"nodeName": node} if node else {},
        status={
            "phase": "Running",
            "podIP": ip,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastTransitionTime": "2026-11-21T06:00:00Z",
                }
            ],
            "containerStatuses": [
                {"name": names.ENGINE_CONTAINER, "restartCount": 0, "state": {"running": {}}}
            ],
        },
    )
    body["metadata"]["creationTimestamp"] = "2026-11-21T05:59:00Z"
    return body


def deployment(replicas: int, *, name: str = "demo-spot-zone-a", version: int = 1) -> Json:
    labels = names.tier_labels(REF.name, names.ROLE_ENGINE)
    body = obj(DEPLOYMENT, name, version=version, labels=labels, spec={"replicas": replicas})
    body["metadata"]["ownerReferences"] = [
        {"apiVersion": TIER.api_version, "kind": TIER.kind, "name": REF.name, "uid": TIER_UID}
    ]
    return body
