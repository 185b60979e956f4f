"""What a grammar makes an answer say: the smallest value that fits its JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from spotinference.devcluster.simengine import tokenizer

_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Forced:
    """The text that the engine generates, and the tool whose arguments it is."""

    text: str
    tool: str | None = None

    def tokens(self) -> list[int]:
        return tokenizer.encode(self.text)


def by_schema(body: Mapping[str, object]) -> Forced | None:
    """What a JSON schema makes of the answer; None: the model says what it likes."""
    schema = _schema(body)
    return None if schema is None else Forced(_text(schema))


def by_tool(body: Mapping[str, object]) -> Forced | None:
    """The arguments of the tool that the request names or requires, if it does."""
    functions = [_function(tool) for tool in _list(body.get("tools"))]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        name = _function(choice).get("name")
        functions = [function for function in functions if function.get("name") == name]
    elif choice != "required":
        return None
    if not functions:
        return None
    parameters = functions[0].get("parameters")
    text = _text(parameters if isinstance(parameters, dict) else {"type": "object"})
    return Forced(text, str(functions[0].get("name")))


def _function(tool: object) -> dict[str, object]:
    """Chat nests a function below `function`; the Responses API does not."""
    if not isinstance(tool, dict):
        return {}
    inner = tool.get("function", tool)
    return inner if isinstance(inner, dict) else {}


def _schema(body: Mapping[str, object]) -> object | None:
    outputs = body.get("structured_outputs")
    if isinstance(outputs, dict) and outputs.get("json") is not None:
        schema: object = outputs["json"]
        return orjson.loads(schema) if isinstance(schema, str) else schema
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        inner = form.get("json_schema")
        return inner.get("schema") if isinstance(inner, dict) else None
    return None


def _text(schema: object) -> str:
    return orjson.dumps(_value(schema, schema, _MAX_DEPTH)).decode()


def _value(schema: object, root: object, depth: int) -> object:
    """The smallest value of a schema; what is not understood becomes null."""
    if not isinstance(schema, dict) or not depth:
        return None
    if isinstance(ref := schema.get("$ref"), str):
        return _value(_resolve(root, ref), root, depth - 1)
    if "const" in schema:
        return schema["const"]
    for name in ("enum", "anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(name), list) and options:
            return options[0] if name == "enum" else _value(options[0], root, depth - 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties")
            return {
                name: _value(inner, root, depth - 1)
                for name, inner in (properties if isinstance(properties, dict) else {}).items()
            }
        case "array":
            return [_value(schema.get("items"), root, depth - 1)] * int(schema.get("minItems", 1))
        case "string":
            return "word"
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case _:
            return None


def _resolve(root: object, ref: str) -> object:
    found = root
    for part in ref.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
