"""Kubeconfig files for the identities of an embedded cluster."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from spotinference.api.kinds import Json
from spotinference.devcluster.certificates import Pair
from spotinference.devcluster.state import write_private


def with_certificate(file: Path, cluster: str, server: str, ca: Path, pair: Pair) -> None:
    user = {
        "client-certificate-data": _embedded(pair.cert),
        "client-key-data": _embedded(pair.key),
    }
    _write(file, cluster, server, ca, user, "default")


def with_token(file: Path, cluster: str, server: str, ca: Path, token: str, namespace: str) -> None:
    _write(file, cluster, server, ca, {"token": token}, namespace)


def _write(file: Path, cluster: str, server: str, ca: Path, user: Json, namespace: str) -> None:
    name = f"spotinference-{cluster}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server, "certificate-authority-data": _embedded(ca)},
            }
        ],
        "users": [{"name": name, "user": user}],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}
        ],
        "current-context": name,
    }
    write_private(file, yaml.safe_dump(config, sort_keys=False))


def _embedded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
