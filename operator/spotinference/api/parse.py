"""From the JSON of a resource to its values: the one place where specs become typed.

The API server refused wrong specs already, with the same rules; this catches objects stored before
a rule existed, and everything that never saw an API server (tests, the simulator).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from spotinference import errors
from spotinference.api import rules
from spotinference.api.kinds import Json
from spotinference.api.model import ApiModel
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus, WakeStatus

_Model = TypeVar("_Model", bound=ApiModel)
_MAX_LAYERS = 8
"""A status is not nested as deep: each round takes away what one layer lacks."""


def parse_tier(body: Json) -> TierSpec:
    """The spec of an InferenceTier; `SpecInvalid` names the field and the remedy."""
    _obey_name(body, rules.TIER_NAME)
    return _spec(TierSpec, body)


def parse_pool(body: Json) -> PoolSpec:
    """The spec of a GPUPool; `SpecInvalid` names the field and the remedy."""
    _obey_name(body, rules.POOL_NAME)
    return _spec(PoolSpec, body)


def stored_tier(body: Json) -> TierSpec:
    """As `parse_tier`, of an object that the API server handed us: see `stored`."""
    _obey_name(body, rules.TIER_NAME)
    return _spec(TierSpec, body, stored)


def stored_pool(body: Json) -> PoolSpec:
    """As `parse_pool`, of an object that the API server handed us: see `stored`."""
    _obey_name(body, rules.POOL_NAME)
    return _spec(PoolSpec, body, stored)


def stored(model: type[_Model], spec: Any) -> _Model:
    """A spec without the fields that we do not know; pydantic's error for all else.

    The API server lets no unknown field through: these are of a newer CRD. An upgrade brings that
    first, and from then on its defaults stand in every object that processes of the version before
    read, until they are replaced (or for good after a rollback).
    """
    try:
        return model.model_validate(spec, strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        unknown = [e["loc"] for e in wrong if e["type"] == "extra_forbidden"]
        if not unknown:
            raise
    return model.model_validate(_without(spec, unknown), strict=True)


def parse_status(body: Json) -> TierStatus:
    """The status of a tier. What a hand or another version damaged counts as not there; all else is
    kept: what was learned, and the number of replicas, are in there too.
    """
    status = body.get("status") or {}
    for _ in range(_MAX_LAYERS):
        try:
            return TierStatus.model_validate(status)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_context=False, include_input=False)
            # What a field lacks is missing from what is around it: that goes as a whole.
            places = [e["loc"][:-1] if e["type"] == "missing" else e["loc"] for e in wrong]
            if not all(places):
                break
            status = _without(status, places)
    return TierStatus()


def parse_wake(body: Json) -> WakeStatus | None:
    """The wake of a tier's status alone; as `parse_status`."""
    wake = (body.get("status") or {}).get("wake")
    return parse_status({"status": {"wake": wake}}).wake


def _without(value: Any, places: list[tuple[int | str, ...]]) -> Any:
    """A copy without what is at these places, each a path of keys and indices."""
    gone = {place[0] for place in places if len(place) == 1}
    deeper: dict[int | str, list[tuple[int | str, ...]]] = {}
    for place in places:
        if len(place) > 1:
            deeper.setdefault(place[0], []).append(place[1:])
    if isinstance(value, dict):
        kept = ((k, v) for k, v in value.items() if k not in gone)
        return {k: _without(v, deeper[k]) if k in deeper else v for k, v in kept}
    kept_items = ((i, v) for i, v in enumerate(value) if i not in gone)
    return [_without(v, deeper[i]) if i in deeper else v for i, v in kept_items]


def _obey_name(body: Json, name_rules: tuple[rules.Rule, ...]) -> None:
    name = str(body.get("metadata", {}).get("name", ""))
    for rule in name_rules:
        if rule.holds is not None and not rule.holds(name):
            message = rule.message.removeprefix("metadata.name ")
            raise errors.SpecInvalid("metadata.name", f"{name!r} {message}")


def _strictly(model: type[_Model], spec: Any) -> _Model:
    return model.model_validate(spec, strict=True)


def _spec(
    model: type[_Model],
    body: Json,
    read: Callable[[type[_Model], Any], _Model] = _strictly,
) -> _Model:
    try:
        return read(model, body.get("spec") or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        path = ".".join(["spec", *(str(part) for part in first["loc"])])
        if context.get("field"):
            path = f"{path}.{context['field']}"
        value = first["input"]
        shown = f"{value!r}: " if isinstance(value, str | int | float) else ""
        raise errors.SpecInvalid(path, f"{shown}{first['msg']}") from error
