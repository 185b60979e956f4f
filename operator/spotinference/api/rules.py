"""The rules that specs obey, each written twice in one place: as CEL and as Python.

The API server enforces the CEL (with our sentence, which names the remedy; the server adds field
and value), `parse.py` enforces the Python for objects stored before a rule existed. Rules stand on
a type (`Annotated[str, Checked(DURATION)]`) or on a model (`rules: ClassVar`). Formats are CEL
`matches` and never `pattern`: a failed pattern shows the server's wording and hides all CEL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from spotinference.api import durations, flags, quantities
from spotinference.api.kinds import GROUP, Json

VALIDATIONS = "x-kubernetes-validations"
ERROR_TYPE = "spotinference_rule"


@dataclass(frozen=True, slots=True)
class Rule:
    cel: str | None
    """None where the schema says it already (a keyed list has no key twice)."""
    message: str
    """Completes '<field>: Invalid value: <value>: …'."""
    holds: Callable[[Any], bool] | None
    """The same in Python; None for a rule about a change, which only the server can see."""
    field: str | None = None
    """The guilty field below the object the rule stands on, as users write it."""

    def validation(self) -> Json:
        """The entry of `x-kubernetes-validations`."""
        out: Json = {"rule": self.cel, "message": self.message}
        if self.field is not None:
            out["fieldPath"] = "." + self.field
        return out

    def require(self, value: Any) -> None:
        """Raises pydantic's error when the rule does not hold."""
        if self.holds is not None and not self.holds(value):
            raise PydanticCustomError(
                ERROR_TYPE, "{message}", {"message": self.message, "field": self.field}
            )


@dataclass(frozen=True, slots=True)
class Checked:
    """Puts rules on a type: `Annotated[str, Checked(DURATION)]`."""

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        object.__setattr__(self, "rules", rules)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._require, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> Json:
        out = handler(schema)
        out[VALIDATIONS] = [rule.validation() for rule in self.rules if rule.cel is not None]
        return out

    def _require(self, value: Any) -> Any:
        for rule in self.rules:
            rule.require(value)
        return value


@dataclass(frozen=True, slots=True)
class Schema:
    """Adds keywords to the generated schema of a type, e.g. how a list merges."""

    keywords: tuple[tuple[str, Any], ...]

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> Json:
        return {**handler(schema), **dict(self.keywords)}


def keyed_by(*fields: str) -> Schema:
    """A list whose entries are told apart by these fields (server-side apply merges by them)."""
    return Schema((("x-kubernetes-list-type", "map"), ("x-kubernetes-list-map-keys", list(fields))))


# --- building blocks ----------------------------------------------------------------------------


def form(pattern: str, message: str) -> Rule:
    """The whole text matches an RE2 pattern that means the same in Python."""
    compiled = re.compile(pattern, re.ASCII)
    return Rule(
        cel=f"self.matches({_literal(pattern)})",
        message=message,
        holds=lambda text: compiled.search(text) is not None and not text.endswith("\n"),
    )


def duration_between(shortest: str, longest: str) -> Rule:
    """A well-formed duration lies in this range (a malformed one is `DURATION`'s to refuse)."""
    low, high = durations.seconds(shortest), durations.seconds(longest)
    return Rule(
        cel=f"!self.matches({_literal(durations.PATTERN)}) || "
        f"(duration(self) >= duration('{shortest}') && duration(self) <= duration('{longest}'))",
        message=f"must be between {shortest} and {longest}",
        holds=lambda text: low <= durations.seconds(text) <= high,
    )


def unique(what: str) -> Rule:
    return Rule(
        cel="self.all(x, self.exists_one(y, x == y))",
        message=f"names the same {what} twice; remove one",
        holds=lambda items: len(set(items)) == len(items),
    )


def _literal(text: str) -> str:
    """A CEL string literal; raw, so that backslashes of a pattern stay as they are."""
    return f"r'{text}'"


def _strings(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{item}'" for item in items) + "]"


# --- formats ------------------------------------------------------------------------------------

DURATION = form(durations.PATTERN, "must be a duration such as 90s, 8m or 1h30m")
QUANTITY = form(quantities.PATTERN, "must be a quantity such as 4, 500m or 16Gi")
POSITIVE_QUANTITY = Rule(
    cel="!isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))",
    message="must be more than zero",
    holds=lambda text: quantities.amount(text) > 0,
)
IDENTIFIER = form(
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    "must be a plain name of letters, digits, '.', '_' and '-', as vLLM's documentation spells it",
)
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
DNS_LABEL = form(
    rf"^{_LABEL}$",
    "must be a name of lower-case letters, digits and '-', as in its metadata.name",
)
DNS_SUBDOMAIN = form(
    rf"^{_LABEL}(\.{_LABEL})*$",
    "must be a name of lower-case letters, digits, '.' and '-', as in its metadata.name",
)
SECRET_KEY = form(
    r"^[A-Za-z0-9._-]+$", "must be a key of the Secret: letters, digits, '.', '_' and '-'"
)
LABEL_VALUE = form(
    r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$",
    "must be a label value: letters, digits, '.', '_' and '-', beginning and ending with a "
    "letter or digit",
)
SERVED_NAME = form(
    r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$",
    'must be a name that clients can send as "model": letters, digits and . _ : / @ + -',
)
RESOURCE_NAME = form(
    r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$",
    "must be an extended resource such as nvidia.com/gpu or amd.com/gpu",
)
LABEL_KEY = (
    r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
)
TOLERATION_KEY = form(LABEL_KEY, "must be a taint key such as nvidia.com/gpu")
UTILIZATION = form(
    r"^(0\.(0[1-9]|[1-9][0-9]?)[0-9]{0,2}|1|1\.0)$",
    'must be a share of the GPU\'s memory from "0.01" to "1", e.g. "0.92"',
)
IMAGE = Rule(
    cel=r"self.matches(r'^[A-Za-z0-9][^\s@]*[:@][^\s/]+$') && !self.endsWith(':latest')",
    message="must name a tag other than latest, or a digest: all replicas run the same engine, "
    "e.g. vllm/vllm-openai:v0.32.0",
    holds=lambda text: (
        re.search(r"^[A-Za-z0-9][^\s@]*[:@][^\s/]+$", text) is not None
        and not text.endswith(":latest")
    ),
)
DRAIN = Rule(
    cel=f"self == 'auto' || (self.matches({_literal(durations.PATTERN)}) && "
    "duration(self) <= duration('1h'))",
    message="must be auto, or a duration up to 1h such as 25s",
    holds=lambda text: text == "auto" or _seconds_at_most(text, 3600),
)


def _seconds_at_most(text: str, bound: float) -> bool:
    return re.fullmatch(durations.PATTERN, text) is not None and durations.seconds(text) <= bound


# --- the model ----------------------------------------------------------------------------------

_REPO_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HF = rf"hf://{_REPO_PART}/{_REPO_PART}"
_PVC = r"pvc://[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9_][A-Za-z0-9._/-]*"

MODEL_SOURCE = form(
    f"^({_HF}|{_PVC})$",
    "must be hf://ORG/NAME, e.g. hf://Qwen/Qwen3-8B, or pvc://CLAIM/PATH for weights on a claim "
    "of your own",
)
NO_PARENT_FOLDERS = Rule(
    cel="!self.contains('..')",
    message="must not contain '..'; give the path from the root of the claim or repository",
    holds=lambda text: ".." not in text,
)
SOURCE_IMMUTABLE = Rule(
    cel="self == oldSelf",
    message="is immutable: create another tier for another model (spec.model.revision may change)",
    holds=None,
)
REVISION = form(
    r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
    "must be a branch, tag or commit: letters, digits, '.', '_', '/' and '-'",
)
REVISION_ONLY_OF_HUB = Rule(
    cel="!self.source.startsWith('pvc://') || self.revision == 'main'",
    message="has no meaning for a pvc:// source; remove it, and use another path for other weights",
    holds=lambda model: not model.source.startswith("pvc://") or model.revision == "main",
    field="revision",
)
TOKEN_ONLY_OF_HUB = Rule(
    cel="!self.source.startsWith('pvc://') || !has(self.tokenSecretRef)",
    message="has no meaning for a pvc:// source; remove it",
    holds=lambda model: not model.source.startswith("pvc://") or model.token_secret_ref is None,
    field="tokenSecretRef",
)

# --- the engine ---------------------------------------------------------------------------------


def _owned_rule(owned: flags.Owned) -> Rule:
    name = "self.split('=')[0].split('.')[0].replace('_', '-')"
    prefix = f"{_strings(owned.flags)}.exists(flag, flag.startsWith({name}))"
    letters = tuple(flag for flag in owned.flags if len(flag) == 2)
    attached = "".join(f" || self.startsWith('{letter}')" for letter in letters)
    return Rule(
        cel=f"!self.startsWith('-') || self.matches({_literal(flags.VALUE_PATTERN)}) || "
        f"!({prefix}{attached})",
        message=f"is refused, or may stand for a refused flag: {owned.remedy}",
        holds=lambda argument: flags.refused_by(argument, owned) is None,
    )


EXTRA_ARGUMENT: tuple[Rule, ...] = (
    *(_owned_rule(owned) for owned in flags.OWNED),
    Rule(
        cel=r"!self.startsWith('-') || !self.split('=')[0].matches(r'\s')",
        message="is refused: write a flag and its value as two items of the list, or as FLAG=VALUE",
        holds=lambda argument: not flags.spaced(argument),
    ),
)
FLAG_FIRST = Rule(
    cel="self.size() == 0 || self[0].startsWith('-')",
    message="must begin with a flag; a value without a flag before it is not understood by vLLM",
    holds=lambda items: not items or items[0].startswith("-"),
)
ENV_NAME = form(
    r"^[A-Za-z_][A-Za-z0-9_]*$",
    "must be a variable name: letters, digits and '_', not beginning with a digit",
)
OWNED_ENV = (
    "LD_[A-Z_]*|PYTHON.*|HF_.*|HUGGING.*|TRANSFORMERS_.*|SPOTINFERENCE_.*|POD_.*|PATH|HOME|USER|"
    "LOGNAME|TMPDIR|CUDA_VISIBLE_DEVICES|NVIDIA_.*|TRITON_CACHE_DIR|TORCHINDUCTOR_CACHE_DIR|"
    "FLASHINFER_WORKSPACE_BASE|VLLM_CACHE_ROOT|VLLM_CONFIG_ROOT|VLLM_ASSETS_CACHE|VLLM_PORT|"
    "VLLM_HOST_IP|VLLM_API_KEY|VLLM_ENGINE_READY_TIMEOUT_S|VLLM_SERVER_DEV_MODE|"
    "VLLM_NO_USAGE_STATS|VLLM_PLUGINS|VLLM_DP_.*|VLLM_ALLOW_RUNTIME_LORA_UPDATING|"
    "VLLM_ALLOW_INSECURE_SERIALIZATION|VLLM_LOGGING_CONFIG_PATH"
)
ENV_ALLOWED = Rule(
    cel=f"!self.matches(r'^({OWNED_ENV})$')",
    message="belongs to the operator (caches, identity, GPUs, code loading); remove it, or build "
    "it into an image of your own",
    holds=lambda name: re.fullmatch(OWNED_ENV, name) is None,
)

ENV_UNIQUE = Rule(
    cel=None,
    message="sets the same variable twice; remove one",
    holds=lambda items: len({item.name for item in items}) == len(items),
)

# --- rules over several fields ------------------------------------------------------------------

MIN_WITHIN_MAX = Rule(
    cel="self.minReplicas <= self.maxReplicas",
    message="must not exceed scaling.maxReplicas; raise maxReplicas or lower minReplicas",
    holds=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
    field="minReplicas",
)
REPLICAS_WITHIN_MAX = Rule(
    cel="!has(self.replicas) || self.replicas <= self.scaling.maxReplicas",
    message="must not exceed spec.scaling.maxReplicas; raise maxReplicas first",
    holds=lambda spec: spec.replicas is None or spec.replicas <= spec.scaling.max_replicas,
    field="replicas",
)
BUDGET_WITHIN_CAP = Rule(
    cel=f"!self.budget.matches({_literal(durations.PATTERN)}) || "
    f"!self.cap.matches({_literal(durations.PATTERN)}) || "
    "duration(self.budget) <= duration(self.cap)",
    message="must not exceed wake.cap: a wake is called late before it is given up; "
    "raise cap or lower budget",
    holds=lambda wake: durations.seconds(wake.budget) <= durations.seconds(wake.cap),
    field="budget",
)
GPUS_FOR_TENSOR_PARALLEL = Rule(
    cel="self.engine.tensorParallelSize <= self.resources.gpu.count",
    message="must be at least spec.engine.tensorParallelSize: each shard needs a GPU of its own",
    holds=lambda spec: spec.engine.tensor_parallel_size <= spec.resources.gpu.count,
    field="resources.gpu.count",
)
SHARED_MEMORY_WITHIN_MEMORY = Rule(
    cel="!isQuantity(self.sharedMemory) || !isQuantity(self.memory) || "
    "quantity(self.sharedMemory).compareTo(quantity(self.memory)) <= 0",
    message="must not exceed resources.memory: /dev/shm counts against it; raise memory",
    holds=lambda resources: (
        quantities.amount(resources.shared_memory) <= quantities.amount(resources.memory)
    ),
    field="sharedMemory",
)
ALIAS_NOT_SERVED_NAME = Rule(
    cel="!has(self.servedName) || !(self.servedName in self.aliases)",
    message="repeats servedName; remove it from the list",
    holds=lambda model: model.served_name not in model.aliases,
    field="aliases",
)
CLAIM_IMMUTABLE = (
    Rule(
        cel="self.accessMode == oldSelf.accessMode",
        message="is immutable: Kubernetes cannot change a volume's access mode; "
        "create another tier",
        holds=None,
        field="accessMode",
    ),
    Rule(
        cel="has(self.storageClassName) == has(oldSelf.storageClassName) && "
        "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        message="is immutable: Kubernetes cannot move a volume to another class; "
        "create another tier",
        holds=None,
        field="storageClassName",
    ),
    Rule(
        cel="!isQuantity(self.size) || !isQuantity(oldSelf.size) || "
        "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
        message="must not shrink: Kubernetes can only grow a volume",
        holds=None,
        field="size",
    ),
)
TOLERATION_VALUE = (
    Rule(
        cel="self.operator != 'Exists' || !has(self.value) || self.value == ''",
        message="must be absent with operator Exists; remove it, or set operator: Equal",
        holds=lambda toleration: toleration.operator != "Exists" or not toleration.value,
        field="value",
    ),
    Rule(
        cel="self.operator != 'Equal' || has(self.value)",
        message="is needed with operator Equal; set it, or set operator: Exists",
        holds=lambda toleration: toleration.operator != "Equal" or toleration.value is not None,
        field="value",
    ),
)
RESERVED_LABELS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
SELECTOR_KEYS = (
    Rule(
        cel=f"self.all(key, !(key in {_strings(RESERVED_LABELS)}) && !key.startsWith('{GROUP}/'))",
        message="must not select by zone or by labels of spotinference.dev: "
        "list the zones in spec.zones",
        holds=lambda labels: (
            not any(key in RESERVED_LABELS or key.startswith(f"{GROUP}/") for key in labels)
        ),
    ),
    Rule(
        cel=f"self.all(key, key.matches({_literal(LABEL_KEY)}))",
        message="has a key that is no label key; write it as on the node, e.g. nvidia.com/gpu.product",
        holds=lambda labels: all(re.search(LABEL_KEY, key) for key in labels),
    ),
)

# --- rules over the whole object ----------------------------------------------------------------

TIER_NAME_LENGTH = 40
_TIER_NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
TIER_NAME = (
    Rule(
        cel=f"self.metadata.name.size() <= {TIER_NAME_LENGTH}",
        message=f"metadata.name must have at most {TIER_NAME_LENGTH} characters: "
        "names of pods and volumes are made from it",
        holds=lambda name: len(name) <= TIER_NAME_LENGTH,
    ),
    Rule(
        cel=f"self.metadata.name.matches({_literal(_TIER_NAME)})",
        message="metadata.name must begin with a letter and consist of lower-case letters, digits "
        "and '-': a Service is named after it",
        holds=lambda name: re.search(_TIER_NAME, name) is not None,
    ),
)
POOL_NAME = (
    Rule(
        cel="self.metadata.name.size() <= 63",
        message="metadata.name must have at most 63 characters: it becomes a label of pods",
        holds=lambda name: len(name) <= 63,
    ),
)
