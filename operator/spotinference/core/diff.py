"""Whether a live child still is what we asked for: a subset comparison, so that defaults filled
in by the server and fields of other owners are no difference, and edits of our fields are.

Steady state must write nothing at all: a no-op apply is an audited request too.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal, InvalidOperation

import orjson

from spotinference.api.kinds import Json
from spotinference.api.names import ANNOTATION_SPEC_HASH

_KEYED_BY = {
    "containers": "name",
    "env": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "ports": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists that the API server merges by key: entries of other owners survive our apply."""

_ATOMIC_MAPS = frozenset({"selector", "matchLabels", "nodeSelector"})
"""Maps that mean something else with a key more; the API server replaces them as a whole."""

_QUANTITIES = frozenset({"requests", "limits"})
_SUFFIXES = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def stamped(manifest: Json) -> Json:
    """The manifest with the hash of itself as annotation.

    Replica counts are not part of the hash (they change without the template changing), nor are
    resourceVersions. The hash is what notices a field that we no longer set.
    """
    spec = {k: v for k, v in manifest.get("spec", {}).items() if k != "replicas"}
    hashed = {**manifest, "spec": spec}
    digest = hashlib.sha256(orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_SPEC_HASH: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def differs(desired: Json, live: Json) -> bool:
    """True when applying `desired` would change something of ours in `live`."""
    return bool(difference(desired, live))


def difference(desired: Json, live: Json) -> str:
    """Path of the first field of ours that differs, "" when none does.

    Most comparisons find nothing, again and again; those are remembered by version and hash.
    """
    key = _key(desired, live)
    if key is not None and key in _SAME:
        return ""
    found = _compared(desired, live)
    if key is not None and not found:
        if len(_SAME) >= MAX_REMEMBERED:
            _SAME.clear()
        _SAME.add(key)
    return found


MAX_REMEMBERED = 50_000
_SAME: set[tuple[str, str, str, object]] = set()
"""(uid and resourceVersion of the live object, hash and replicas of ours): a version never changes."""


def forget() -> None:
    """Everything that is remembered; for worlds whose uids begin anew."""
    _SAME.clear()


def _key(desired: Json, live: Json) -> tuple[str, str, str, object] | None:
    metadata = live.get("metadata", {})
    uid, version = metadata.get("uid"), metadata.get("resourceVersion")
    digest = (desired["metadata"].get("annotations") or {}).get(ANNOTATION_SPEC_HASH)
    if uid is None or version is None or digest is None:
        return None
    return uid, version, digest, desired.get("spec", {}).get("replicas")


def _compared(desired: Json, live: Json) -> str:
    wanted = {k: v for k, v in desired.items() if k not in {"apiVersion", "kind"}}
    metadata = {k: v for k, v in desired["metadata"].items() if k != "resourceVersion"}
    return _dict_difference({**wanted, "metadata": metadata}, live, "")


def quantity(text: str) -> Decimal | None:
    """A Kubernetes quantity as a number, None when it is not one."""
    for cut in (2, 1):
        suffix = text[-cut:]
        if suffix in _SUFFIXES and len(text) > cut:
            number, factor = text[:-cut], _SUFFIXES[suffix]
            break
    else:
        number, factor = text, Decimal(1)
    try:
        return Decimal(number) * factor
    except InvalidOperation:
        return None


def _difference(desired: object, live: object, path: str, name: str, parent: str) -> str:
    if isinstance(desired, dict):
        return _dict_difference(desired, live, path) if isinstance(live, dict) else path
    if isinstance(desired, list):
        return _list_difference(desired, live, path, name) if isinstance(live, list) else path
    if desired == live:
        return ""
    if (parent in _QUANTITIES or name == "sizeLimit") and _same_quantity(desired, live):
        return ""
    return path


def _dict_difference(desired: Json, live: Json, path: str) -> str:
    parent = path.rsplit(".", 1)[-1]
    if parent in _ATOMIC_MAPS and live.keys() - desired.keys():
        return path
    for key, value in desired.items():
        where = f"{path}.{key}" if path else key
        if key not in live:
            # The server drops empty values of optional fields.
            if value in (None, "", [], {}) or value is False:
                continue
            return where
        if found := _difference(value, live[key], where, key, parent):
            return found
    return ""


def _list_difference(desired: list[object], live: list[object], path: str, name: str) -> str:
    merge_key = _KEYED_BY.get(name)
    if merge_key is not None and all(isinstance(e, dict) and merge_key in e for e in desired):
        by_key = {e.get(merge_key): e for e in live if isinstance(e, dict)}
        for entry in desired:
            assert isinstance(entry, dict)
            where = f"{path}[{entry[merge_key]}]"
            if entry[merge_key] not in by_key:
                return where
            if found := _dict_difference(entry, by_key[entry[merge_key]], where):
                return found
        return ""
    if len(desired) != len(live):
        return path
    for index, (want, have) in enumerate(zip(desired, live, strict=True)):
        if found := _difference(want, have, f"{path}[{index}]", "", ""):
            return found
    return ""


def _same_quantity(desired: object, live: object) -> bool:
    if not isinstance(desired, str) or not isinstance(live, str):
        return False
    want, have = quantity(desired), quantity(live)
    return want is not None and want == have
