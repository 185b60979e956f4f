"""Which commit a tier serves, and in which zones its cache is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import names, times
from spotinference.api.kinds import JOB, Json
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import WeightsStatus
from spotinference.core import manifests
from spotinference.core.diff import stamped
from spotinference.core.fleet import markets, owned
from spotinference.core.observed import CacheView, Observed

JOB_RETRY_S = 300.0
"""A cache job that gave up is made anew after this: secrets and hubs get repaired."""


@dataclass(frozen=True, slots=True)
class Weights:
    status: WeightsStatus | None
    usable: bool
    """engines can be started: the commit is known, or the weights lie on the user's own claim"""
    open_zones: frozenset[str] | None
    """zones with a complete cache; None when there is one cache for all, or none is needed"""
    complete: int
    total: int
    failure: str | None
    """the first failure of a cache job, in its own words"""
    pending: str | None
    """why a claim is not bound, in the provisioner's words"""
    nodeless: str | None = None
    """why no node takes a cache job, in the scheduler's words"""

    @property
    def revision(self) -> str | None:
        return None if self.status is None else self.status.revision


@dataclass(frozen=True, slots=True)
class JobChanges:
    applies: tuple[Json, ...] = ()
    deletes: tuple[Json, ...] = ()
    look_again_at: tuple[datetime, ...] = ()


def needs_fetching(spec: TierSpec) -> bool:
    return not spec.model.source.startswith("pvc://")


def cache_zones(observed: Observed) -> tuple[str | None, ...]:
    """One claim for all zones, or (ReadWriteOnce) one per zone of the placement."""
    if observed.spec.cache.access_mode == "ReadWriteMany":
        return (None,)
    return tuple(dict.fromkeys(market.zone for market, _ in markets(observed)))


def weigh(observed: Observed) -> Weights:
    """The commit to serve is resolved once and then kept until the spec asks for another.

    While another one is being fetched, the old one goes on serving.
    """
    zones = cache_zones(observed)
    views: Mapping[str | None, CacheView] = {c.zone: c for c in observed.caches}
    here = [views[z] for z in zones if z in views]
    pending = next((c.claim_message for c in here if not c.bound and c.claim_message), None)
    if not needs_fetching(observed.spec):
        return Weights(None, True, None, len(zones), len(zones), None, pending)
    failure = next((c.failure for c in here if c.failure), None)
    nodeless = next((c.claim_message for c in here if c.bound and c.claim_message), None)
    before = observed.status.weights
    status = _resolve(before, observed.spec.model.revision, here, len(zones))
    if status is None:
        return Weights(None, False, frozenset(), 0, len(zones), failure, pending, nodeless)
    holding = [c for c in here if c.complete and c.revision in {None, status.revision}]
    old = status.requested != observed.spec.model.revision
    good = [c for c in here if c.bound] if old else holding
    per_zone = frozenset(c.zone for c in good if c.zone is not None)
    single = zones == (None,)
    return Weights(
        status=status,
        usable=bool(good) or old,
        open_zones=None if single and (good or old) else per_zone,
        complete=len(holding),
        total=len(zones),
        failure=failure,
        pending=pending,
        nodeless=nodeless,
    )


def _resolve(
    before: WeightsStatus | None, requested: str, here: list[CacheView], total: int
) -> WeightsStatus | None:
    if before is not None and before.requested == requested:
        return before
    found = [c for c in here if c.complete and c.revision is not None]
    settled = len([c for c in here if c.complete or c.failure]) >= total
    if not found or (before is not None and not settled):
        return before
    first = found[0]
    assert first.revision is not None
    return WeightsStatus(revision=first.revision, requested=requested, bytes=first.size_bytes)


def job_changes(observed: Observed, subject: manifests.Subject, weights: Weights) -> JobChanges:
    """Cache jobs to make, and those to remove: outdated ones, and failed ones after a while."""
    if not needs_fetching(observed.spec):
        return JobChanges()
    applies, deletes, timers = [], [], []
    wanted = set()
    known = weights.status
    requested = observed.spec.model.revision
    pinned = known.revision if known is not None and known.requested == requested else requested
    views = {c.zone: c for c in observed.caches}
    for zone in cache_zones(observed):
        job = stamped(manifests.cache_job(subject, zone, pinned))
        name = job["metadata"]["name"]
        wanted.add(name)
        live = observed.children.get((JOB.kind, name))
        if live is None:
            applies.append(job)
            continue
        if live["metadata"].get("deletionTimestamp") or not owned(live, observed.uid):
            continue
        view = views.get(zone)
        if view is not None and view.complete:
            if view.revision is None and known is None:
                deletes.append(live)  # its result cannot be read any more: run it again
            continue
        failed_at = _failed_at(live)
        if failed_at is not None:
            due = failed_at + timedelta(seconds=JOB_RETRY_S)
            if observed.now >= due or _stale(live, job, pinned, requested):
                deletes.append(live)
            else:
                timers.append(due)
        elif _stale(live, job, pinned, requested):
            deletes.append(live)
    for (kind, name), live in observed.children.items():
        role = (live.get("metadata", {}).get("labels") or {}).get(names.LABEL_ROLE)
        ours = kind == JOB.kind and role == names.ROLE_CACHE and owned(live, observed.uid)
        if ours and name not in wanted and not live["metadata"].get("deletionTimestamp"):
            deletes.append(live)
    return JobChanges(tuple(applies), tuple(deletes), tuple(timers))


def _failed_at(job: Json) -> datetime | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("type") == "Failed" and condition.get("status") == "True":
            return times.parse(condition["lastTransitionTime"])
    return None


def _stale(live: Json, job: Json, pinned: str, requested: str) -> bool:
    """Made for another image, endpoint, secret: a job's template cannot be changed.

    That the branch has meanwhile been resolved to a commit does not make a running job stale.
    """
    mine = (live["metadata"].get("annotations") or {}).get(names.ANNOTATION_SPEC_HASH)
    if mine == job["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH] or mine is None:
        return False
    return not (pinned != requested and _same_but_revision(live, job, pinned, requested))


def _same_but_revision(live: Json, job: Json, pinned: str, requested: str) -> bool:
    have = live["spec"]["template"]["spec"]["containers"][0]
    want = job["spec"]["template"]["spec"]["containers"][0]
    args = [requested if arg == pinned else arg for arg in want["args"]]
    same_image = have.get("image") == want["image"]
    return bool(same_image and have.get("args") == args)
