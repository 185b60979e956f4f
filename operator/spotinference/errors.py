"""Every error of spotinference, outlined.

The family decides what happens next, not the place where the error is caught:

    SpotinferenceError
    ├── Retryable            the same call may work later: back off and try again
    │   ├── ApiUnavailable   API server or peer unreachable, 5xx, time-out
    │   ├── Throttled        429; carries retry_after_s
    │   ├── Conflict         409: somebody wrote meanwhile; observe again, decide again
    │   └── NotLeader        leadership was lost: another process writes now
    ├── InvalidInput         will not work until a person changes something
    │   ├── SpecInvalid      a resource's spec; names the field and the remedy
    │   ├── Forbidden        403: names verb and resource
    │   ├── NameTaken        an object of somebody else has the name of a child of ours
    │   └── ConfigInvalid    flags, environment, files of our own processes
    ├── NotFound             404: often an answer, not a failure
    ├── Expired              410: a watch must list again
    └── Bug                  must not happen: crash the task, keep the process, count it
"""

from __future__ import annotations


class SpotinferenceError(Exception):
    """Root of all errors raised on purpose."""


class Retryable(SpotinferenceError):
    """The same call may succeed later."""


class ApiUnavailable(Retryable):
    """A peer did not answer, or answered 5xx."""


class Throttled(Retryable):
    """A peer asked us to slow down; `retry_after_s` is its wish, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(Retryable):
    """Somebody else wrote the object since we read it (409)."""


class NotLeader(Retryable):
    """We do not hold the leader Lease (any more): refuse to write."""


class InvalidInput(SpotinferenceError):
    """Will fail again until a person changes something; the message says what."""


class SpecInvalid(InvalidInput):
    """A resource's spec is wrong; `field` is its path, e.g. `spec.scaling.maxReplicas`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Forbidden(InvalidInput):
    """The API server refused (403); the message names verb and resource."""


class NameTaken(InvalidInput):
    """Somebody else's object has the name that a child of ours needs: hands off."""


class ConfigInvalid(InvalidInput):
    """A flag, variable or file of our own process is wrong."""


class NotFound(SpotinferenceError):
    """The object does not exist (404)."""


class Expired(SpotinferenceError):
    """The resourceVersion is too old (410): list again."""


class Bug(SpotinferenceError):
    """Our own mistake, e.g. a manifest that the API server's schema refuses."""
