"""The tier's children as they should be, against those that are there: what to apply and delete.

Nothing is written in steady state. A foreign object of the same name is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from spotinference.api import names
from spotinference.api.kinds import (
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    PDB,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    TIER,
    Json,
    Kind,
)
from spotinference.core import manifests, weights
from spotinference.core.diff import difference, quantity, stamped
from spotinference.core.fleet import Fleet, Place, Standing, owned
from spotinference.core.manifests import Subject
from spotinference.core.observed import Market, Observed
from spotinference.core.placement import Placement
from spotinference.core.plan import Apply, Delete
from spotinference.core.weights import Weights


@dataclass(frozen=True, slots=True)
class Deployments:
    """Scale writes apart from all others: they are what a waiting client needs."""

    scales: tuple[Apply, ...]
    others: tuple[Apply, ...]
    reverted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    applies: tuple[Apply, ...]
    deletes: tuple[Delete, ...]
    reverted: tuple[str, ...]
    """what somebody had edited by hand and is put back, one sentence each"""
    look_again_at: tuple[datetime, ...] = ()


def subject_of(observed: Observed) -> Subject:
    return Subject(observed.ref, observed.uid, observed.spec, observed.settings)


def conflict(observed: Observed) -> str | None:
    """A sentence about the first object that has our child's name but is somebody else's."""
    for kind, name in _names(observed):
        live = observed.children.get((kind.kind, name))
        if live is None or owned(live, observed.uid) or _former(live, observed):
            continue
        if kind is PVC and _adoptable(live, observed):
            continue
        return (
            f"{kind.kind} {name} exists and does not belong to this tier; "
            "delete or rename it, or give the tier another name"
        )
    return None


def predecessor(observed: Observed) -> str | None:
    """A sentence while children of a deleted tier of this name are still being collected."""
    for kind, name in _names(observed):
        live = observed.children.get((kind.kind, name))
        if live is None or owned(live, observed.uid):
            continue
        if _former(live, observed):
            return f"waiting for {kind.kind} {name} of a deleted tier of this name to go"
    return None


def changes(observed: Observed, fleet: Fleet, stock: Weights, engines: Deployments) -> Changes:
    """Everything to write about children in this round."""
    subject = subject_of(observed)
    reverted: list[str] = []
    applies = _fixed(observed, subject, reverted) + _claims(observed, subject)
    jobs = weights.job_changes(observed, subject, stock)
    applies += [Apply(JOB, job) for job in jobs.applies]
    deletes = [_delete(JOB, job) for job in jobs.deletes]
    deletes += [_delete(DEPLOYMENT, live) for live in fleet.obsolete if not _going(live)]
    return Changes(
        applies=(*applies, *engines.others),
        deletes=tuple(deletes),
        reverted=(*reverted, *engines.reverted),
        look_again_at=jobs.look_again_at,
    )


def _fixed(observed: Observed, subject: Subject, reverted: list[str]) -> list[Apply]:
    found = []
    for kind, bare in manifests.fixed_children(subject):
        desired = stamped(bare)
        live = observed.children.get((kind.kind, desired["metadata"]["name"]))
        if live is not None and _going(live):
            continue
        if live is None or _edited(desired, live, kind, reverted):
            found.append(Apply(kind, desired))
    return found


def _claims(observed: Observed, subject: Subject) -> list[Apply]:
    """Claims are made once; they may grow, and `retain` decides who owns them."""
    found = []
    for zone in weights.cache_zones(observed):
        desired = stamped(manifests.cache_claim(subject, zone))
        live = observed.children.get((PVC.kind, desired["metadata"]["name"]))
        if live is None:
            found.append(Apply(PVC, desired))
            continue
        grows = _outgrown(desired, live)
        retained = "ownerReferences" not in desired["metadata"]
        if _going(live) or not (grows or retained == owned(live, observed.uid)):
            continue
        spec = {
            **desired["spec"],
            "accessModes": live["spec"]["accessModes"],
            "storageClassName": live["spec"].get("storageClassName"),
        }
        if not grows:
            spec["resources"] = {"requests": live["spec"]["resources"]["requests"]}
        found.append(Apply(PVC, {**desired, "spec": spec}))
    return found


def _outgrown(desired: Json, live: Json) -> bool:
    want = quantity(desired["spec"]["resources"]["requests"]["storage"])
    text = live.get("spec", {}).get("resources", {}).get("requests", {}).get("storage", "0")
    have = quantity(text)
    return want is not None and have is not None and want > have


def deployments(observed: Observed, fleet: Fleet, stock: Weights, where: Placement) -> Deployments:
    """The engines' Deployments of all markets."""
    scales: list[Apply] = []
    others: list[Apply] = []
    reverted: list[str] = []
    if not stock.usable:
        return Deployments(tuple(_only_downscales(fleet.places, where)), (), ())
    scales += _only_downscales([p for p in fleet.places if p.closed], where)
    rolling = any(_rolls(p) for p in fleet.places)
    subject = subject_of(observed)
    decided = {Market(m.pool, m.zone): m.desired for m in observed.status.markets}
    for p in fleet.places:
        if p.closed:
            continue
        wanted = where.counts[p.market]
        bare = manifests.engine_deployment(subject, p.market, p.pool, stock.revision, wanted)
        desired = stamped(bare)
        live = p.deployment
        if live is None:
            (scales if wanted > 0 else others).append(Apply(DEPLOYMENT, desired))
            continue
        if _going(live):
            continue
        pinned = _pinned(desired, live)
        if p.spec_replicas != wanted:
            if decided.get(p.market) == wanted:
                reverted.append(_by_hand(DEPLOYMENT, desired, "spec.replicas"))
            scales.append(Apply(DEPLOYMENT, pinned))
        elif _new_template(desired, live) and wanted > 0:
            # One market at a time: elsewhere the old revision goes on serving.
            if not rolling:
                rolling = True
                others.append(Apply(DEPLOYMENT, pinned))
        elif _edited(desired, live, DEPLOYMENT, reverted):
            others.append(Apply(DEPLOYMENT, pinned))
    return Deployments(tuple(scales), tuple(others), tuple(reverted))


def _only_downscales(places: Iterable[Place], where: Placement) -> list[Apply]:
    """Without weights or pool nothing can be rendered; what exists may still have to shrink."""
    found = []
    for p in places:
        live = p.deployment
        if live is None or _going(live) or where.counts[p.market] >= p.spec_replicas:
            continue
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "metadata": {
                k: live["metadata"][k]
                for k in ("name", "namespace", "labels", "annotations", "ownerReferences")
                if k in live["metadata"]
            },
            "spec": {**live["spec"], "replicas": where.counts[p.market]},
        }
        found.append(Apply(DEPLOYMENT, _pinned(body, live)))
    return found


def _pinned(desired: Json, live: Json) -> Json:
    """Carries the version we decided on: a scale from stale state must lose, not overwrite."""
    version = live["metadata"].get("resourceVersion")
    if version is None:
        return desired
    return {**desired, "metadata": {**desired["metadata"], "resourceVersion": version}}


def _hash(obj: Json) -> str | None:
    annotations = obj["metadata"].get("annotations") or {}
    found = annotations.get(names.ANNOTATION_SPEC_HASH)
    return None if found is None else str(found)


def _new_template(desired: Json, live: Json) -> bool:
    return _hash(desired) != _hash(live)


def _edited(desired: Json, live: Json, kind: Kind, reverted: list[str]) -> bool:
    """Whether `live` must be written; notes it when a hand, not a new spec, is the reason."""
    path = difference(desired, live)
    if path and _hash(desired) == _hash(live):
        reverted.append(_by_hand(kind, desired, path))
    return bool(path)


def _by_hand(kind: Kind, desired: Json, path: str) -> str:
    name = desired["metadata"]["name"]
    return f"{kind.kind} {name}: {path} was changed by somebody else and is put back"


def _rolls(place: Place) -> bool:
    """A rollout is under way: old pods stand, or not all are made from the newest template and ready.

    One that no node takes holds up no other market: the old one serves on, or none served there.
    """
    live = place.deployment
    if live is None or place.spec_replicas == 0:
        return False
    status = live.get("status", {})
    if live["metadata"].get("generation", 0) > status.get("observedGeneration", 0):
        return True
    updated = int(status.get("updatedReplicas", 0))
    old = int(status.get("replicas", 0)) - updated
    short = place.spec_replicas - min(updated, int(status.get("availableReplicas", 0)))
    return max(old, short) > len(place.having(Standing.REFUSED))


def _names(observed: Observed) -> list[tuple[Kind, str]]:
    tier = observed.ref.name
    fixed = [
        (SERVICE_ACCOUNT, names.service_account(tier)),
        (SERVICE, names.service(tier)),
        (PDB, names.disruption_budget(tier)),
        (NETWORK_POLICY, names.network_policy(tier)),
    ]
    claims = [(PVC, names.cache_claim(tier, z)) for z in weights.cache_zones(observed)]
    jobs = [
        (JOB, names.cache_job(tier, z, observed.spec.model.revision))
        for z in weights.cache_zones(observed)
    ]
    engines = [
        (DEPLOYMENT, names.engine_deployment(tier, pool, zone))
        for pool, body in sorted(observed.pools.items())
        if pool in observed.spec.placement.pools
        for zone in body.zones
    ]
    return fixed + claims + jobs + engines


def _former(live: Json, observed: Observed) -> bool:
    """Belongs to a deleted tier of the same name: it is being collected."""
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return any(
        o.get("kind") == TIER.kind
        and o.get("name") == observed.ref.name
        and o.get("uid") != observed.uid
        for o in owners
    )


def _adoptable(live: Json, observed: Observed) -> bool:
    """A retained cache of an earlier tier of this name; what it holds is verified by the job."""
    labels = live.get("metadata", {}).get("labels") or {}
    expected = names.tier_labels(observed.ref.name, names.ROLE_CACHE)
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return not owners and all(labels.get(k) == v for k, v in expected.items())


def _going(live: Json) -> bool:
    return live["metadata"].get("deletionTimestamp") is not None


def _delete(kind: Kind, live: Json) -> Delete:
    return Delete(kind=kind, name=live["metadata"]["name"], uid=live["metadata"]["uid"])
