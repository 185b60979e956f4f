"""Every answer of the gateway that is not the engine's: one table, OpenAI-shaped, stable codes.

docs/reference/gateway-errors.md shows this table; a test holds the two together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

import orjson

from spotinference.core import chunks


@dataclass(frozen=True, slots=True)
class Row:
    status: int
    type: str
    retry: bool | None
    """what x-should-retry tells an SDK; None: it may judge by the status"""
    meaning: str


class Code(Enum):
    """The `code` of an error; its name in lower case goes over the wire."""

    INVALID_API_KEY = Row(401, "authentication_error", False, "No key, or one that is not known.")
    KEY_EXPIRED = Row(401, "authentication_error", False, "The key's time is over.")
    KEY_REVOKED = Row(401, "authentication_error", False, "The key was revoked.")
    NOT_FOUND = Row(404, "invalid_request_error", False, "No such path and method.")
    MODEL_NOT_FOUND = Row(
        404, "invalid_request_error", False, "No tier that the key may use has that name."
    )
    INVALID_REQUEST = Row(
        400, "invalid_request_error", False, "The request is malformed; `param` names the field."
    )
    MALFORMED_HTTP = Row(
        400,
        "invalid_request_error",
        False,
        "The message is not HTTP/1.1, or peers could read it differently; the connection is closed.",
    )
    CONTEXT_LENGTH_EXCEEDED = Row(
        400, "invalid_request_error", False, "Prompt and max_tokens exceed the model's context."
    )
    BODY_TOO_LARGE = Row(413, "invalid_request_error", False, "The body is above the limit.")
    BODY_TIMEOUT = Row(408, "invalid_request_error", False, "The body did not come in time.")
    UNSUPPORTED_ENCODING = Row(
        415, "invalid_request_error", False, "Compressed request bodies are not taken."
    )
    ENGINE_REFUSED = Row(
        400, "invalid_request_error", False, "The engine refused the request; its own message."
    )
    ENDPOINT_NOT_SUPPORTED = Row(
        404, "invalid_request_error", False, "The engine of this tier does not have that path."
    )
    RATE_LIMIT_EXCEEDED = Row(
        429, "rate_limit_error", True, "The key is at one of its limits; Retry-After says how long."
    )
    BUDGET_EXCEEDED = Row(
        429, "insufficient_quota", False, "The key has used its tokens of this month."
    )
    IDEMPOTENCY_KEY_REUSED = Row(
        409, "invalid_request_error", False, "The Idempotency-Key belongs to another request."
    )
    ANSWER_GONE = Row(
        404, "invalid_request_error", False, "No answer of that id can be resumed here any more."
    )
    RECORDINGS_FULL = Row(
        429, "rate_limit_error", True, "As many answers are being recorded as may be."
    )
    PARKED_FULL = Row(
        429,
        "rate_limit_error",
        True,
        "As many requests wait for this tier, of this key or in all as may.",
    )
    TIER_PAUSED = Row(503, "service_unavailable_error", False, "spec.paused is set.")
    TIER_INVALID = Row(
        503,
        "service_unavailable_error",
        False,
        "The tier's spec is not valid for this version; the message names the field.",
    )
    TIER_DELETED = Row(
        503, "service_unavailable_error", False, "The tier was deleted while the request waited."
    )
    MODEL_WARMING = Row(
        503,
        "service_unavailable_error",
        None,
        "The tier wakes, and the key is one that does not wait; Retry-After says how long it may "
        "take. x-should-retry is false above 120 s, where SDKs would come back too early.",
    )
    WAKE_TIMEOUT = Row(504, "timeout_error", False, "No replica became ready within spec.wake.cap.")
    ENGINE_BUSY = Row(
        503, "service_unavailable_error", True, "All replicas have had full queues for a while."
    )
    GATEWAY_BUSY = Row(
        503, "service_unavailable_error", True, "As many answers run in this gateway as may."
    )
    ENGINE_FAILED = Row(
        502, "api_error", None, "Replicas answered with an error, or not in the protocol."
    )
    UPSTREAM_LOST = Row(
        502, "api_error", False, "Several replicas died on this request, one after the other."
    )
    NOT_CONTINUABLE = Row(
        502, "api_error", None, "The replica died mid-answer and this request cannot be continued."
    )
    CONTINUATION_DIVERGED = Row(
        502, "api_error", None, "The new replica did not repeat what was delivered."
    )
    GATEWAY_STARTING = Row(
        503, "service_unavailable_error", True, "The gateway has not seen the cluster yet."
    )
    GATEWAY_STOPPING = Row(503, "service_unavailable_error", True, "The gateway is shutting down.")
    INTERNAL_ERROR = Row(500, "api_error", None, "A mistake in the gateway; see its log.")

    @property
    def wire(self) -> str:
        return self.name.lower()


BUSY_RETRY_S = (2, 8)
"""Those who are refused at once must not come back at once."""
SDK_PATIENCE_S = 120
"""The OpenAI SDK obeys a Retry-After up to this. Above it new ones do not retry at all, and others
come back after seconds."""


class GatewayError(Exception):
    """Ends a request: as a response while that is possible, else as an event and an abort."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        status: int | None = None,
        quotes_request: bool = False,
    ) -> None:
        """`quotes_request`: the message may hold parts of the prompt, and is not for logs."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = status or code.value.status
        self.logged = "(the engine's own words)" if quotes_request else message
        """the message as it may be logged"""

    def body(self) -> bytes:
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.code.value.type,
                    "param": self.param,
                    "code": self.code.wire,
                }
            }
        )

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        retry = self.code.value.retry
        if retry is None and self.retry_after_s is not None:
            retry = self.retry_after_s <= SDK_PATIENCE_S
        if retry is not None:
            headers["x-should-retry"] = "true" if retry else "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def event(self) -> bytes:
        """The same as the last event of a stream; the connection is aborted after it."""
        return chunks.error_event(
            self.message, kind=self.code.value.type, code=self.code.wire, status=self.status
        )


def stopping() -> GatewayError:
    return GatewayError(
        Code.GATEWAY_STOPPING, "The gateway is shutting down. Retry.", retry_after_s=1
    )


def tier_deleted(name: str) -> GatewayError:
    return GatewayError(Code.TIER_DELETED, f"The tier {name!r} was deleted.")


def tier_invalid(name: str, problem: str) -> GatewayError:
    return GatewayError(
        Code.TIER_INVALID,
        f"The tier {name!r} cannot be served: {problem}. Ask its owner to mend it.",
    )


def tier_paused(name: str) -> GatewayError:
    return GatewayError(
        Code.TIER_PAUSED,
        f"The tier {name!r} is paused (spec.paused). Ask its owner to resume it.",
    )


def table() -> str:
    """The error table in Markdown, as it stands in the docs."""
    lines = ["| code | status | type | x-should-retry | meaning |", "|---|---|---|---|---|"]
    shown = {True: "true", False: "false", None: "-"}
    for code in Code:
        row = code.value
        lines.append(
            f"| `{code.wire}` | {row.status} | `{row.type}` | {shown[row.retry]} | {row.meaning} |"
        )
    return "\n".join(lines) + "\n"


def gateway_busy() -> GatewayError:
    return GatewayError(
        Code.GATEWAY_BUSY,
        "This gateway gives as many answers as it may. Retry soon.",
        retry_after_s=random.randint(*BUSY_RETRY_S),
    )
