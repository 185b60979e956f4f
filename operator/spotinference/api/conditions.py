"""Condition types and reasons of an InferenceTier: one enum each, documented, sorted on write."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    CAPACITY_AVAILABLE = "CapacityAvailable"
    CACHE_READY = "CacheReady"
    METRICS_AVAILABLE = "MetricsAvailable"
    INTERRUPTED = "Interrupted"


class Reason(StrEnum):
    """Every reason that a condition or event may carry; docs/reference/conditions.md lists them."""

    ASLEEP = "Asleep"
    """Ready=True: at zero replicas on purpose; the first request wakes the tier."""
    PAUSED = "Paused"
    """Ready=True at zero replicas because spec.paused is set; requests are refused."""
    WAKING = "Waking"
    SERVING = "Serving"
    SCALING = "Scaling"
    DRAINING = "Draining"
    STEADY = "Steady"
    WAKE_CALLED_OFF = "WakeCalledOff"
    """Nobody waits any more: the wake was ended before a replica became ready."""
    POOL_NOT_FOUND = "PoolNotFound"
    NO_MARKET = "NoMarket"
    NO_CAPACITY = "NoCapacity"
    CAPACITY_FOUND = "CapacityFound"
    CACHE_FILLING = "CacheFilling"
    CACHE_COMPLETE = "CacheComplete"
    CACHE_FAILED = "CacheFailed"
    VOLUME_PENDING = "VolumePending"
    ENGINE_FAILED = "EngineFailed"
    """An engine container crashes, is not pulled or not admitted; the message quotes it."""
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    FORBIDDEN = "Forbidden"
    INTERNAL_ERROR = "InternalError"
    """The operator failed on this tier again and again; its log says more. Others are unaffected."""
    METRICS_FRESH = "MetricsFresh"
    METRICS_UNKNOWN = "MetricsUnknown"
    NOTICE = "Notice"
    NODE_LOST = "NodeLost"
    UNDISTURBED = "Undisturbed"
    REVERTED = "Reverted"
    """Event only: a child was edited by hand and put back; the message names the field."""
    SUPERSEDED = "Superseded"
    """Children of a deleted tier of the same name are still going; ours follow."""
    HEALTHY = "Healthy"


class Phase(StrEnum):
    ASLEEP = "Asleep"
    WAKING = "Waking"
    READY = "Ready"
    DRAINING = "Draining"
    DEGRADED = "Degraded"


class WakeStage(StrEnum):
    """The stages of a wake in their order; status.wake.stages gives the time each began."""

    WEIGHTS = "weights"
    """the cache volume is being filled; no GPU node is held for this"""
    SCHEDULING = "scheduling"
    """replicas are asked for; a node is being found or launched"""
    STARTING = "starting"
    """bound to a node: image, volume, container start"""
    LOADING = "loading"
    """the engine process runs: weights, compile, graph capture"""
    READY = "ready"
