"""The base of all resource models: camelCase on the wire, snake_case in Python, frozen, closed."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from spotinference.api.rules import VALIDATIONS, Rule


class ApiModel(BaseModel):
    """Obeys its `rules`, which the generated schema repeats for the API server."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        for rule in self.rules:
            rule.require(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        validations = [rule.validation() for rule in cls.rules if rule.cel is not None]
        if validations:
            schema[VALIDATIONS] = validations
        return reference
