"""A pod's volumes as folders of this machine.

Every volume becomes a folder (or file) that `sandbox.Mounts` substitutes for its mount path.
emptyDirs and projected files live in the pod's own folder and go with it; claims live in the
cluster's volumes folder and outlive pods and nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from spotinference.api.kinds import Json
from spotinference.devcluster.sandbox import Mounts
from spotinference.devcluster.sources import Missing, Sources

ClaimFolder = Callable[[str, str], Awaitable[Path]]
"""(namespace, claim) → its folder, once the claim is bound."""


async def prepare(sources: Sources, pod_dir: Path, claim_folder: ClaimFolder) -> dict[str, Path]:
    """Volume name → folder, all of them there; `Missing` names what is not there yet."""
    folders: dict[str, Path] = {}
    for volume in sources.pod["spec"].get("volumes") or []:
        name = volume["name"]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            folders[name] = await claim_folder(sources.namespace, claim)
            continue
        if "hostPath" in volume:
            folders[name] = Path(volume["hostPath"]["path"])
            continue
        folder = pod_dir / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folders[name] = folder
        if "emptyDir" not in volume:
            files = await _files(volume, sources)
            await asyncio.to_thread(_write, folder, files)
    return folders


def of_container(container: Json, folders: dict[str, Path]) -> Mounts:
    """The container's mount paths; sub-paths are made on the spot."""
    paths: dict[str, Path] = {}
    for mount in container.get("volumeMounts") or []:
        folder = folders[mount["name"]]
        if sub_path := mount.get("subPath"):
            folder /= sub_path
            if not folder.exists():
                folder.mkdir(parents=True)
        paths[mount["mountPath"]] = folder
    return Mounts(paths)


async def _files(volume: Json, sources: Sources) -> dict[str, bytes]:
    if "projected" in volume:
        files: dict[str, bytes] = {}
        for source in volume["projected"].get("sources") or []:
            files |= await _source_files(source, sources)
        return files
    if "secret" in volume:
        source = volume["secret"]
        return await _source_files({"secret": {**source, "name": source["secretName"]}}, sources)
    return await _source_files(volume, sources)


async def _source_files(source: Json, sources: Sources) -> dict[str, bytes]:
    if "configMap" in source or "secret" in source:
        kind = "configMap" if "configMap" in source else "secret"
        ref = source[kind]
        optional = bool(ref.get("optional"))
        read = sources.config_map if kind == "configMap" else sources.secret
        return _chosen(await read(ref["name"], optional=optional), ref)
    if "serviceAccountToken" in source:
        ref = source["serviceAccountToken"]
        return {ref["path"]: await sources.token(ref.get("audience"))}
    if "downwardAPI" in source:
        return {
            item["path"]: sources.field(item["fieldRef"]["fieldPath"]).encode()
            for item in source["downwardAPI"].get("items") or []
        }
    kinds = ", ".join(key for key in source if key != "name")
    raise Missing(f"volume source {kinds!r} is not known to the embedded cluster")


def _chosen(data: dict[str, bytes], ref: Json) -> dict[str, bytes]:
    items = ref.get("items")
    if not items:
        return data
    chosen: dict[str, bytes] = {}
    for item in items:
        if item["key"] in data:
            chosen[item["path"]] = data[item["key"]]
        elif not ref.get("optional"):
            raise Missing(f"references non-existent key {item['key']} of {ref['name']}")
    return chosen


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o600)
