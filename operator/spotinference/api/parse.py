"""From the JSON of a resource to its values: the one place where specs become typed.

The API server refused wrong specs already, with the same rules; this catches objects stored before
a rule existed, and everything that never saw an API server (tests, the simulator).
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from spotinference import errors
from spotinference.api import rules
from spotinference.api.kinds import Json
from spotinference.api.model import ApiModel
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus

_Model = TypeVar("_Model", bound=ApiModel)


def parse_tier(body: Json) -> TierSpec:
    """The spec of an InferenceTier; `SpecInvalid` names the field and the remedy."""
    _obey_name(body, rules.TIER_NAME)
    return _spec(TierSpec, body)


def parse_pool(body: Json) -> PoolSpec:
    """The spec of a GPUPool; `SpecInvalid` names the field and the remedy."""
    _obey_name(body, rules.POOL_NAME)
    return _spec(PoolSpec, body)


def parse_status(body: Json) -> TierStatus:
    """The status of a tier. One that a hand or another version damaged counts as none at all."""
    try:
        return TierStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return TierStatus()


def _obey_name(body: Json, name_rules: tuple[rules.Rule, ...]) -> None:
    name = str(body.get("metadata", {}).get("name", ""))
    for rule in name_rules:
        if rule.holds is not None and not rule.holds(name):
            message = rule.message.removeprefix("metadata.name ")
            raise errors.SpecInvalid("metadata.name", f"{name!r} {message}")


def _spec(model: type[_Model], body: Json) -> _Model:
    try:
        return model.model_validate(body.get("spec") or {}, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        path = ".".join(["spec", *(str(part) for part in first["loc"])])
        if context.get("field"):
            path = f"{path}.{context['field']}"
        value = first["input"]
        shown = f"{value!r}: " if isinstance(value, str | int | float) else ""
        raise errors.SpecInvalid(path, f"{shown}{first['msg']}") from error
