"""Carries out a `Plan`: writes only, in the plan's order, each one idempotent and guarded.

A write that lost a race (Conflict) ends the act: the tier is observed and decided again. A write
that cannot work until somebody changes something (Forbidden, a name that is taken, a refused
manifest) does not stop the others; it becomes the tier's Degraded condition. Before what cannot
be undone, the API server is asked whether it is still so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from spotinference import errors
from spotinference.api import names, parse, times
from spotinference.api.conditions import ConditionType, Reason
from spotinference.api.kinds import DEPLOYMENT, LEASE, NODE, POD, TIER, Json
from spotinference.api.tier_status import Condition, TierStatus
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube
from spotinference.controller.demand import DemandBook
from spotinference.controller.events import EventPoster
from spotinference.controller.latency import Latencies
from spotinference.controller.observe import owner_uid
from spotinference.controller.store import Store
from spotinference.controller.writer import Writer
from spotinference.core.diff import differs
from spotinference.core.observed import NodeHealth, Observed, TierRef
from spotinference.core.plan import Apply, Delete, Doom, Pardon, Plan

log = structlog.get_logger(__name__)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
TERMINATING = "being terminated"
"""in the API server's 403 for a namespace that is going away: terminal, not a missing right"""
RETRY_BLOCKED_S = 60.0
"""What only a person can mend is tried again this seldom."""
MAX_MESSAGE = 2000


class NamespaceGoing(Exception):  # an answer, not an error
    """The tier's namespace is being deleted: nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why the plan could not be carried out in full; shown as the Degraded condition."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Actor:
    kube: Kube
    writer: Writer
    store: Store
    demand: DemandBook
    events: EventPoster
    latencies: Latencies
    clock: Clock

    async def act(self, observed: Observed, plan: Plan) -> float | None:
        """Answers when to look again because something is blocked; `NamespaceGoing` when moot."""
        return await self.rest(observed, plan, await self.urgent(observed, plan))

    async def rest(self, observed: Observed, plan: Plan, blocked: Blocked | None) -> float | None:
        """What nobody waits for; `blocked`: what `urgent` answered."""
        if blocked is None:
            blocked = await self._rest(observed, plan)
        else:
            await self._rest(observed, plan, deletes=False)
        await self._status(observed, plan, blocked)
        for note in plan.events:
            await self.events.post(observed.ref, observed.uid, note)
        return RETRY_BLOCKED_S if blocked else None

    async def report(self, ref: TierRef, blocked: Blocked) -> None:
        """A tier that cannot even be decided about: only its Degraded condition is written."""
        body = self.store.get(TIER, ref.name, ref.namespace)
        if body is None:
            return
        status = parse.parse_status(body)
        generation = int(body["metadata"].get("generation") or 0)
        wanted = degraded(status, status, blocked, generation, self.clock.now())
        wanted = wanted.model_copy(update={"observed_generation": generation, "phase": "Degraded"})
        if wanted != status:
            await self._write_status(ref, body["metadata"]["uid"], wanted)

    # --- scales and dooms: what somebody waits for ------------------------------------------------

    async def urgent(self, observed: Observed, plan: Plan) -> Blocked | None:
        """Dooms and scales alone."""
        if self._falls_asleep(observed, plan):
            await self._no_demand_unseen(observed)
        grows = [_grows(observed, scale) for scale in plan.scales]
        # Scale-ups first: the others step back behind them (`writer.Lane`), also those of other tiers.
        first = [self._scale(observed, s) for s, up in zip(plan.scales, grows, strict=True) if up]
        first += [self._doom(observed, doom) for doom in plan.dooms]
        refused = await _all(first)
        # A ReplicaSet that shrinks before it sees the mark may end a busy pod in place of the marked.
        downs = [s for s, up in zip(plan.scales, grows, strict=True) if not up]
        refused += await _all([self._scale(observed, scale) for scale in downs])
        return _blocked(refused[0]) if refused else None

    async def _scale(self, observed: Observed, scale: Apply) -> None:
        live = observed.children.get(_child_key(scale))
        before, after = _replicas(live), _replicas(scale.manifest)
        try:
            if live is not None and only_the_number(scale.manifest, live):
                await self.writer.scale(live, after, urgent=after > before)
            else:
                await self._apply(observed, scale, urgent=after > before)
        except errors.Conflict:
            await self._read_again(observed, scale)
            raise
        if after > before:
            self.latencies.scaled_up(observed.ref, from_zero=_running(observed) == 0)
        log.info(
            "scaled",
            tier=str(observed.ref),
            deployment=scale.manifest["metadata"]["name"],
            before=before,
            after=after,
        )

    async def _read_again(self, observed: Observed, scale: Apply) -> None:
        """What won the race, so that the next decision sees it, be the watch frozen for a minute."""
        name = scale.manifest["metadata"]["name"]
        try:
            live = await self.kube.get(scale.kind, name, observed.ref.namespace)
        except errors.SpotinferenceError as error:
            log.info("scale.unread", tier=str(observed.ref), deployment=name, error=str(error))
            return
        self.store.put(scale.kind, live)

    async def _doom(self, observed: Observed, doom: Doom) -> None:
        await self.writer.annotate(
            POD,
            _pod(observed, doom.pod, doom.uid),
            {
                names.ANNOTATION_DOOMED_UNTIL: times.to_text(doom.until),
                names.ANNOTATION_DOOMED_REASON: doom.reason.value,
                DELETION_COST: str(doom.deletion_cost),
            },
        )

    def _falls_asleep(self, observed: Observed, plan: Plan) -> bool:
        wanted = {_child_key(scale): _replicas(scale.manifest) for scale in plan.scales}
        before = after = 0
        for key, child in observed.children.items():
            if key[0] == DEPLOYMENT.kind:
                before += _replicas(child)
                after += wanted.get(key, _replicas(child))
        return before > 0 and after == 0 and not observed.spec.paused

    async def _no_demand_unseen(self, observed: Observed) -> None:
        """A request may have arrived whose Lease our watch has not shown: waking wins."""
        selector = ",".join(
            f"{key}={value}"
            for key, value in names.tier_labels(observed.ref.name, names.ROLE_DEMAND).items()
        )
        listing = await self.kube.list(LEASE, observed.ref.namespace, label_selector=selector)
        for lease in listing.items:
            self.store.put(LEASE, lease)
            self.demand.saw(lease)
        demands, _ = self.demand.fresh(observed.ref)
        if {d.gateway_id for d in demands} - {d.gateway_id for d in observed.demands}:
            raise errors.Conflict(f"{observed.ref}: demand arrived while going to sleep")

    # --- the rest ---------------------------------------------------------------------------------

    async def _rest(
        self, observed: Observed, plan: Plan, *, deletes: bool = True
    ) -> Blocked | None:
        """One after the other; the first thing that is blocked is what is reported."""
        blocked: Blocked | None = None
        steps: list[Apply | Delete | Pardon] = [*plan.applies]
        steps += plan.deletes if deletes else ()
        steps += plan.pardons
        for step in steps:
            try:
                match step:
                    case Apply():
                        await self._apply(observed, step)
                    case Delete():
                        await self._delete(observed, step)
                    case Pardon():
                        await self._pardon(observed, step)
            except errors.InvalidInput as error:
                blocked = blocked or _blocked(error)
        return blocked

    async def _apply(self, observed: Observed, step: Apply, *, urgent: bool = False) -> None:
        if _child_key(step) not in observed.children:
            await self._not_somebody_elses(observed, step)
        await self.writer.apply(step.kind, step.manifest, urgent=urgent)

    async def _not_somebody_elses(self, observed: Observed, step: Apply) -> None:
        """Before a create: an apply would take over whatever has this name."""
        name = step.manifest["metadata"]["name"]
        try:
            live = await self.kube.get(step.kind, name, observed.ref.namespace)
        except errors.NotFound:
            return
        owner = owner_uid(live)
        if owner == observed.uid:
            return
        labels = live["metadata"].get("labels") or {}
        ours = labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
        named = labels.get(names.LABEL_TIER)
        if owner is not None and (named is None or named == observed.ref.name):
            raise errors.Conflict(f"{step.kind.kind} {name} of an earlier tier is still going")
        if not ours or named != observed.ref.name:
            raise errors.NameTaken(
                f"{step.kind.kind} {name} exists and is not ours: delete or rename it, "
                "or give the tier another name"
            )

    async def _delete(self, observed: Observed, step: Delete) -> None:
        if step.kind == POD and step.grace_s == 0:
            await self._node_really_gone(observed, step)
        live = {
            "metadata": {
                "name": step.name,
                "namespace": observed.ref.namespace,
                "uid": step.uid,
            }
        }
        try:
            await self.writer.delete(step.kind, live, grace_s=step.grace_s)
        except errors.Conflict:
            # Another uid under that name: the one we meant is gone.
            self.store.deleted(step.kind, live, at_once=True)

    async def _node_really_gone(self, observed: Observed, step: Delete) -> None:
        """A pod is struck off only when the API server, asked now, has no such node either."""
        replica = next((r for r in observed.replicas if r.uid == step.uid), None)
        if replica is None or replica.node is None or replica.node.health is not NodeHealth.GONE:
            return
        try:
            node = await self.kube.get(NODE, replica.node.name)
        except errors.NotFound:
            return
        self.store.put(NODE, node)
        raise errors.Conflict(f"node {replica.node.name} of pod {step.name} is there after all")

    async def _pardon(self, observed: Observed, step: Pardon) -> None:
        annotations = (
            names.ANNOTATION_DOOMED_UNTIL,
            names.ANNOTATION_DOOMED_REASON,
            DELETION_COST,
        )
        live = _pod(observed, step.pod, step.uid)
        await self.writer.annotate(POD, live, dict.fromkeys(annotations))

    # --- status -----------------------------------------------------------------------------------

    async def _status(self, observed: Observed, plan: Plan, blocked: Blocked | None) -> None:
        wanted = plan.status or observed.status
        if blocked is not None:
            wanted = degraded(
                wanted, observed.status, blocked, observed.generation, self.clock.now()
            )
        if wanted != observed.status:
            await self._write_status(observed.ref, observed.uid, wanted)

    async def _write_status(self, ref: TierRef, uid: str, status: TierStatus) -> None:
        body = {
            "apiVersion": TIER.api_version,
            "kind": TIER.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": uid},
            "status": status.model_dump(by_alias=True, exclude_none=True, mode="json"),
        }
        try:
            await self.writer.apply_status(TIER, body)
        except errors.NotFound:
            return  # deleted meanwhile
        except errors.Forbidden as error:
            if TERMINATING in str(error):
                raise NamespaceGoing from error
            log.error("status.forbidden", tier=str(ref), error=str(error))  # noqa: TRY400


def degraded(
    status: TierStatus, before: TierStatus, blocked: Blocked, generation: int, now: datetime
) -> TierStatus:
    """The status with its Degraded condition True for what is blocked; unchanged when it says so."""
    old = next((c for c in before.conditions if c.type == ConditionType.DEGRADED), None)
    since = times.to_text(now)
    if old is not None and old.status == "True":
        since = old.last_transition_time
    condition = Condition(
        type=ConditionType.DEGRADED,
        status="True",
        observed_generation=generation,
        last_transition_time=since,
        reason=blocked.reason,
        message=blocked.message[:MAX_MESSAGE],
    )
    others = [c for c in status.conditions if c.type != ConditionType.DEGRADED]
    conditions = sorted([*others, condition], key=lambda c: c.type)
    return status.model_copy(update={"conditions": conditions})


async def _all(writes: Sequence[Awaitable[None]]) -> list[errors.InvalidInput]:
    """All at once; what only a person can mend is answered, anything else raised."""
    refused: list[errors.InvalidInput] = []
    for error in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(error, errors.InvalidInput):
            refused.append(error)
        elif error is not None:
            raise error
    return refused


def _blocked(error: BaseException) -> Blocked:
    message = str(error)
    match error:
        case errors.Forbidden() if TERMINATING in message:
            raise NamespaceGoing from error
        case errors.Forbidden():
            return Blocked(Reason.FORBIDDEN, f"the API server refused: {message}")
        case errors.NameTaken():
            return Blocked(Reason.NAME_CONFLICT, message)
        case _:
            return Blocked(Reason.INVALID_SPEC, message)


def only_the_number(manifest: Json, live: Json) -> bool:
    """Whether a Deployment differs from what is wanted in its replicas and in nothing else."""
    same = {**manifest["spec"], "replicas": live["spec"].get("replicas")}
    return not differs({**manifest, "spec": same}, live)


def _grows(observed: Observed, scale: Apply) -> bool:
    return _replicas(scale.manifest) > _replicas(observed.children.get(_child_key(scale)))


def _child_key(step: Apply) -> tuple[str, str]:
    return step.kind.kind, step.manifest["metadata"]["name"]


def _replicas(deployment: Json | None) -> int:
    return int((deployment or {}).get("spec", {}).get("replicas") or 0)


def _running(observed: Observed) -> int:
    return sum(
        _replicas(child) for key, child in observed.children.items() if key[0] == DEPLOYMENT.kind
    )


def _pod(observed: Observed, name: str, uid: str) -> Json:
    return {"metadata": {"name": name, "namespace": observed.ref.namespace, "uid": uid}}
