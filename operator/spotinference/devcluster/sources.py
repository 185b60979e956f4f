"""Where a pod's environment and files come from: ConfigMaps, Secrets, the pod itself.

`Missing` means "cannot start yet": the kubelet shows it as CreateContainerConfigError and tries
again. Used by `containers.py` (environment) and `mounts.py` (volumes).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from spotinference import errors
from spotinference.api.kinds import CONFIG_MAP, SECRET, SERVICE_ACCOUNT, Json
from spotinference.clients.kube import Kube
from spotinference.devcluster import sandbox

TOKEN_SECONDS = 24 * 3600
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class Missing(Exception):
    """Something the pod refers to is not there; the message names it."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Reads what one pod refers to. `pod` is its object, `ip` its address."""

    kube: Kube
    pod: Json
    ip: str
    host_ip: str

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    async def environment(self, container: Json) -> dict[str, str]:
        """The container's variables in order, `$(VAR)` expanded with those before."""
        env: dict[str, str] = {}
        for source in container.get("envFrom") or []:
            prefix = source.get("prefix", "")
            for key, content in (await self._all_of(source)).items():
                env[prefix + key] = content.decode(errors="replace")
        for entry in container.get("env") or []:
            if "valueFrom" in entry:
                value = await self._value(entry["valueFrom"], container)
                if value is not None:
                    env[entry["name"]] = value
            else:
                env[entry["name"]] = sandbox.expand(entry.get("value", ""), env)
        return env

    async def _all_of(self, source: Json) -> dict[str, bytes]:
        if "configMapRef" in source:
            ref = source["configMapRef"]
            return await self.config_map(ref["name"], optional=bool(ref.get("optional")))
        ref = source["secretRef"]
        return await self.secret(ref["name"], optional=bool(ref.get("optional")))

    async def _value(self, source: Json, container: Json) -> str | None:
        if "fieldRef" in source:
            return self.field(source["fieldRef"]["fieldPath"])
        if "resourceFieldRef" in source:
            return _resource(source["resourceFieldRef"]["resource"], container)
        kind, ref = next(
            (kind, source[key])
            for kind, key in (("configmap", "configMapKeyRef"), ("secret", "secretKeyRef"))
            if key in source
        )
        optional = bool(ref.get("optional"))
        data = await (
            self.config_map(ref["name"], optional=optional)
            if kind == "configmap"
            else self.secret(ref["name"], optional=optional)
        )
        if ref["key"] in data:
            return data[ref["key"]].decode(errors="replace")
        if optional:
            return None
        raise Missing(f"couldn't find key {ref['key']} in {kind} {self.namespace}/{ref['name']}")

    def field(self, path: str) -> str:
        """The downward API."""
        meta, spec = self.pod["metadata"], self.pod["spec"]
        if match := _MAP_FIELD.fullmatch(path):
            return str((meta.get(match[1]) or {}).get(match[2], ""))
        plain = {
            "metadata.name": meta["name"],
            "metadata.namespace": meta["namespace"],
            "metadata.uid": meta["uid"],
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", ""),
            "status.podIP": self.ip,
            "status.podIPs": self.ip,
            "status.hostIP": self.host_ip,
            "status.hostIPs": self.host_ip,
        }
        if path in plain:
            return str(plain[path])
        if path in ("metadata.labels", "metadata.annotations"):
            pairs = meta.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f'{key}="{value}"' for key, value in sorted(pairs.items()))
        raise Missing(f"downward API field {path!r} is not known to the embedded cluster")

    async def config_map(self, name: str, *, optional: bool) -> dict[str, bytes]:
        try:
            found = await self.kube.get(CONFIG_MAP, name, self.namespace)
        except errors.NotFound:
            return _absent("configmap", name, optional=optional)
        text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return text | _decoded(found.get("binaryData"))

    async def secret(self, name: str, *, optional: bool) -> dict[str, bytes]:
        try:
            found = await self.kube.get(SECRET, name, self.namespace)
        except errors.NotFound:
            return _absent("secret", name, optional=optional)
        return _decoded(found.get("data"))

    async def token(self, audience: str | None) -> bytes:
        """A fresh token of the pod's ServiceAccount."""
        account = self.pod["spec"].get("serviceAccountName", "default")
        body: Json = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": self.namespace},
            "spec": {"expirationSeconds": TOKEN_SECONDS}
            | ({"audiences": [audience]} if audience else {}),
        }
        answer = await self.kube.create(SERVICE_ACCOUNT, body, subresource="token")
        return str(answer["status"]["token"]).encode()


def _absent(kind: str, name: str, *, optional: bool) -> dict[str, bytes]:
    if optional:
        return {}
    raise Missing(f'{kind} "{name}" not found')


def _decoded(data: dict[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (data or {}).items()}


def _resource(name: str, container: Json) -> str:
    section, _, resource = name.partition(".")
    value = ((container.get("resources") or {}).get(section) or {}).get(resource)
    if value is None:
        raise Missing(f"resourceFieldRef {name!r}: the container declares no such quantity")
    return str(value)
