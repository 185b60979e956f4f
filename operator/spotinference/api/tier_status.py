"""The status of an `InferenceTier` as Python values; the CRD is rendered from these models, too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from spotinference.api import rules as r
from spotinference.api import times
from spotinference.api.model import ApiModel


def _moment(text: str) -> str:
    """A time that can be reckoned with; ValueError for any other."""
    if not _FIRST_YEAR <= times.parse(text).year <= _LAST_YEAR:
        raise ValueError(f"{text!r} is no moment of a tier")
    return text


_FIRST_YEAR, _LAST_YEAR = 1970, 9000
"""Far from both ends of what datetime can say: durations are added to it and taken off."""
Time = Annotated[str, StringConstraints(max_length=40), AfterValidator(_moment)]
"""RFC 3339 in UTC. A string, because a printer column of type date shows the past only."""


class Condition(ApiModel):
    """One aspect of the tier's state; docs/reference/conditions.md lists types and reasons."""

    type: Annotated[str, StringConstraints(max_length=316)] = Field(
        description="Which aspect, e.g. Ready."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(
        default=None, description="The generation of the spec this was said about."
    )
    last_transition_time: Time = Field(description="When status last changed.")
    reason: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="Why, as one word that scripts may rely on."
    )
    message: Annotated[str, StringConstraints(max_length=32_768)] = Field(
        description="Why and what to do, for people."
    )


class MarketStatus(ApiModel):
    """One (pool, zone) and what the tier has there."""

    pool: Annotated[str, StringConstraints(max_length=63)] = Field(description="GPUPool.")
    zone: Annotated[str, StringConstraints(max_length=63)] = Field(
        description="Value of topology.kubernetes.io/zone."
    )
    desired: int = Field(default=0, description="Replicas asked for in this market.")
    ready: int = Field(default=0, description="Replicas that serve.")
    doomed: int = Field(default=0, description="Replicas that will go soon.")
    refused_at: Time | None = Field(
        default=None,
        description="When a launch here last stayed pending or was given up, or a node was taken; gone "
        "once a launch finds a node (after one that was given up: once one is ready).",
    )
    backoff_seconds: int = Field(
        default=0, description="No launch here for so long after refusedAt; doubled each time."
    )
    failed_launches: int = Field(
        default=0,
        description="Launches in a row that found a node here and never became ready; 0 again once "
        "one is, and with an edit of the tier.",
    )
    calm_since: Time | None = Field(
        default=None, description="No reclaim seen since; set back by reclaims next door."
    )
    watched_until: Time | None = Field(
        default=None, description="When the last replica here went; absent while one stands here."
    )
    reclaimed_at: Time | None = Field(
        default=None, description="When it last took a replica's node back."
    )


class LossesStatus(ApiModel):
    """How often losses on spot went together; changes only when a node is taken."""

    of_several: int = Field(
        default=0, description="Reclaims in a market where several replicas stood."
    )
    whole: int = Field(default=0, description="Of those, how many took all of them.")
    neighbours: int = Field(
        default=0,
        description="Other spot markets of the region with a replica, added up over all reclaims.",
    )
    joint: int = Field(
        default=0, description="Of those, how many lost one too within half a minute."
    )


class StageStatus(ApiModel):
    """A stage of a wake and when it began."""

    name: Annotated[str, StringConstraints(max_length=63)] = Field(
        description="weights, scheduling, starting, loading or ready."
    )
    started_at: Time = Field(description="When it began.")


class WakeStatus(ApiModel):
    """The wake under way, or the last one (then `readyAt` is set)."""

    started_at: Time = Field(description="When the first request asked for it.")
    deadline: Time = Field(description="When it is given up (wake.cap after its start).")
    stage: Annotated[str, StringConstraints(max_length=63)] = Field(
        description="The stage it is in."
    )
    stages: list[StageStatus] = Field(
        default=[], max_length=16, description="When each stage began, in order."
    )
    ready_at: Time | None = Field(default=None, description="When the first replica was ready.")
    eta: Time | None = Field(default=None, description="When a replica is expected to be ready.")


class ScalingStatus(ApiModel):
    """Hysteresis of the autoscaler; kept here so that a restarted operator goes on from it."""

    over_since: Time | None = Field(default=None, description="Load is over target since.")
    under_since: Time | None = Field(default=None, description="Load is under target since.")
    idle_since: Time | None = Field(default=None, description="Nothing to do since.")
    unknown_since: Time | None = Field(
        default=None, description="No replica that serves could be read since."
    )
    step_started_at: Time | None = Field(
        default=None, description="When the current scale-up period began."
    )
    step_added: int = Field(default=0, description="Replicas added in that period.")


class LearnedStatus(ApiModel):
    """What was learned of the tier's load; kept here so that a restarted operator knows it."""

    at: Time = Field(description="When it was last written.")
    requests_per_replica_milli: int = Field(
        default=0, description="Thousandths of a request per second that a full replica serves."
    )
    tokens_per_replica_milli: int = Field(default=0, description="The same for output tokens.")
    full_in_flight: int = Field(
        default=0,
        description="Requests in flight that a replica takes without preempting any from its KV "
        "cache and, with scaling.slo, while keeping that; 0: it was never too much; -1: even one "
        "request is, so it is not aimed at.",
    )
    idle_milli: list[int] = Field(
        default=[],
        max_length=30,
        description="Thousandths of an idle time by length, in half octaves from 30 s; old ones "
        "count less. With scaling.sleepAfter learned.",
    )
    day_milli: list[int] = Field(
        default=[],
        max_length=96,
        description="Thousandths of a request per second in each quarter of an hour of the day "
        "(UTC); -1 where nothing is known.",
    )
    margins_percent: list[int] = Field(
        default=[], max_length=8, description="Margin of each forecast, in percent."
    )
    losses_milli: list[int] = Field(
        default=[], max_length=8, description="Past loss of each forecast; -1: never judged."
    )


class DecisionStatus(ApiModel):
    """The last decision that changed the number of replicas."""

    at: Time = Field(description="When it was taken.")
    desired: int = Field(description="Replicas it asked for.")
    reason: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="Why, in a sentence."
    )


class PlacementStatus(ApiModel):
    """The last decision that gave a market one replica more."""

    at: Time = Field(description="When it was taken.")
    reason: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="Which markets, and why these."
    )


class MoveStatus(ApiModel):
    """What staying where it stands has cost the tier, or the move of a replica that is under way."""

    at: Time = Field(description="When overpaidMicroUSD was right, or the move began.")
    overpaid_micro_usd: int = Field(
        alias="overpaidMicroUSD",
        default=0,
        description="What its markets had cost by then beyond the best one, interruptions counted. "
        "When it reaches the cost of a move, one is made.",
    )
    micro_usd_per_hour: int = Field(
        alias="microUSDPerHour",
        default=0,
        description="What is added to that per hour; below zero: taken off, the tier stands best where "
        "it is.",
    )
    origin: Annotated[str, StringConstraints(max_length=127)] | None = Field(
        default=None, description="The market (pool/zone) that a replica leaves."
    )
    target: Annotated[str, StringConstraints(max_length=127)] | None = Field(
        default=None, description="The market where the one that takes its place is started first."
    )


class WeightsStatus(ApiModel):
    """Which weights serve."""

    revision: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="The commit that serves; resolved once from spec.model.revision."
    )
    requested: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="The spec.model.revision that was resolved."
    )
    bytes: int | None = Field(default=None, description="Size of the model's files.")


class EngineStatus(ApiModel):
    """What the engine that serves says of itself; kept while the tier sleeps."""

    context_window: int = Field(
        description="Tokens of prompt and answer together, as the engine reports it "
        "(max_model_len)."
    )
    spec_hash: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="Of the image and arguments it was started with; forgotten when these change."
    )


class EngineFailureStatus(ApiModel):
    """Wakes that ended because the engine would not start; reset by a ready replica or an edit."""

    failures: int = Field(default=0, description="Such wakes in a row.")
    generation: int = Field(default=0, description="The tier's generation that failed.")
    retry_at: Time = Field(description="No replica is started before this.")
    message: Annotated[str, StringConstraints(max_length=1024)] = Field(
        default="", description="The engine's own words."
    )


class TierStatus(ApiModel):
    """What the operator observed and decided. Only the operator writes it."""

    observed_generation: int | None = Field(
        default=None, description="The generation of the spec that this status answers."
    )
    phase: Literal["Asleep", "Waking", "Ready", "Draining", "Degraded"] | None = Field(
        default=None, description="The tier's state in one word, for people."
    )
    conditions: Annotated[list[Condition], r.keyed_by("type")] = Field(
        default=[], max_length=32, description="The tier's state in detail, sorted by type."
    )
    replicas: int = Field(default=0, description="Replicas that exist, ready or not.")
    ready_replicas: int = Field(default=0, description="Replicas that serve.")
    ready_summary: Annotated[str, StringConstraints(max_length=20)] = Field(
        default="0/0", description="Ready and desired replicas, e.g. 1/2."
    )
    selector: Annotated[str, StringConstraints(max_length=512)] = Field(
        default="", description="Label selector of the engine pods, for the scale subresource."
    )
    markets: list[MarketStatus] = Field(
        default=[], max_length=256, description="What the tier has in each (pool, zone)."
    )
    wake: WakeStatus | None = Field(
        default=None, description="The wake under way, or the last one."
    )
    last_wake_seconds: int | None = Field(
        default=None, description="Duration of the last finished wake."
    )
    scaling: ScalingStatus = Field(
        default_factory=ScalingStatus, description="Hysteresis of the autoscaler."
    )
    learned: LearnedStatus | None = Field(
        default=None, description="What was learned of the tier's load; written seldom."
    )
    last_decision: DecisionStatus | None = Field(
        default=None, description="The last decision that changed the number of replicas."
    )
    last_placement: PlacementStatus | None = Field(
        default=None, description="The last decision that gave a market one replica more."
    )
    losses: LossesStatus | None = Field(
        default=None, description="How often losses went together; absent until there were some."
    )
    move: MoveStatus | None = Field(
        default=None, description="Absent while no market costs less than those the tier stands in."
    )
    weights: WeightsStatus | None = Field(default=None, description="Which weights serve.")
    engine: EngineStatus | None = Field(
        default=None, description="What the engine that serves says of itself."
    )
    engine_failure: EngineFailureStatus | None = Field(
        default=None, description="Wakes that ended because the engine would not start."
    )
