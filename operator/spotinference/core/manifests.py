"""The children of a tier as Kubernetes objects, built as values and never by templating strings.

Everything is a function of (tier, market, commit, settings) alone; labels and annotations of the
CR are never copied (a GitOps tool would adopt and prune the children). Who calls: `reconcile`.
"""

from __future__ import annotations

from dataclasses import dataclass

from spotinference.api import durations, names
from spotinference.api.kinds import (
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    PDB,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    TIER,
    Json,
    Kind,
)
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.core import engine_args
from spotinference.core.observed import Market, OperatorSettings, TierRef

RUN_AS = 2000
"""User and group of engine and cache pods; the claim's files belong to this group."""
UNREACHABLE_S = 10
"""Toleration of a silent node; the default of 300 s would keep a dead replica for 5 minutes."""
JOB_RETRIES = 4
STARTUP_PERIOD_S = 2
DEADLINE_MARGIN_S = 900
"""A rollout may also wait for a node; its progress deadline is only a condition."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The tier that children are made for."""

    ref: TierRef
    uid: str
    spec: TierSpec
    settings: OperatorSettings


def fixed_children(subject: Subject) -> list[tuple[Kind, Json]]:
    """What a tier has exactly one of, whatever its size."""
    return [
        (SERVICE_ACCOUNT, service_account(subject)),
        (SERVICE, service(subject)),
        (PDB, disruption_budget(subject)),
        (NETWORK_POLICY, network_policy(subject)),
    ]


def service_account(subject: Subject) -> Json:
    name = names.service_account(subject.ref.name)
    return _child(subject, SERVICE_ACCOUNT, name, automountServiceAccountToken=False)


def service(subject: Subject) -> Json:
    """Headless: for monitoring and people; the gateway reads pods."""
    spec = {
        "clusterIP": "None",
        "selector": names.tier_labels(subject.ref.name, names.ROLE_ENGINE),
        "ports": [
            {
                "name": names.ENGINE_PORT_NAME,
                "port": names.ENGINE_PORT,
                "protocol": "TCP",
                "targetPort": names.ENGINE_PORT_NAME,
            }
        ],
    }
    return _child(subject, SERVICE, names.service(subject.ref.name), spec=spec)


def disruption_budget(subject: Subject) -> Json:
    """Voluntary evictions (node upgrades, consolidation) take one replica at a time.

    A replica that is not ready serves nobody: by default the budget would keep its node from
    being drained for as long as it loads, or crashes.
    """
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": names.tier_labels(subject.ref.name, names.ROLE_ENGINE)},
    }
    return _child(subject, PDB, names.disruption_budget(subject.ref.name), spec=spec)


def network_policy(subject: Subject) -> Json:
    """Only gateway and operator reach an engine: its token routes and /metrics are not guarded."""
    settings = subject.settings
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": settings.system_namespace}}
    peers = [
        {"namespaceSelector": namespace, "podSelector": {"matchLabels": dict(selector)}}
        for selector in (settings.gateway_selector, settings.operator_selector)
    ]
    spec = {
        "podSelector": {"matchLabels": names.tier_labels(subject.ref.name, names.ROLE_ENGINE)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": peers,
                "ports": [{"port": names.ENGINE_PORT, "protocol": "TCP"}],
            }
        ],
    }
    return _child(subject, NETWORK_POLICY, names.network_policy(subject.ref.name), spec=spec)


def cache_claim(subject: Subject, zone: str | None) -> Json:
    """The volume of weights and compiled kernels. A retained one has no owner and stays."""
    cache = subject.spec.cache
    spec: Json = {
        "accessModes": [cache.access_mode],
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    manifest = _child(subject, PVC, names.cache_claim(subject.ref.name, zone), spec=spec)
    manifest["metadata"]["labels"] = _labels(subject, names.ROLE_CACHE, zone=zone)
    if cache.retain:
        del manifest["metadata"]["ownerReferences"]
    return manifest


def cache_job(subject: Subject, zone: str | None, revision: str) -> Json:
    """Fills one claim by `spotinference weights fetch`: resumable, so a retry is cheap.

    `restartPolicy: Never`: each attempt is a pod whose termination message stays readable.
    """
    model, settings = subject.spec.model, subject.settings
    env: list[Json] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - a volume of the pod
        {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
    ]
    if model.token_secret_ref is not None:
        reference = {"name": model.token_secret_ref.name, "key": model.token_secret_ref.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    args = ["weights", "fetch", "--source", model.source, "--revision", revision]
    args += ["--dest", names.WEIGHTS_DIR, "--endpoint", settings.hub_endpoint]
    container = {
        "name": "fetch",
        "image": settings.image,
        "args": args,
        "env": env,
        "resources": {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"memory": "4Gi"},
        },
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "cache", "mountPath": names.CACHE_MOUNT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod
        ],
    }
    claim = names.cache_claim(subject.ref.name, zone)
    pod: Json = {
        "restartPolicy": "Never",
        "serviceAccountName": names.service_account(subject.ref.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(),
        "containers": [container],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    if zone is not None:
        pod["nodeSelector"] = {names.ZONE_LABEL: zone}
    labels = _labels(subject, names.ROLE_CACHE, zone=zone)
    name = names.cache_job(subject.ref.name, zone, subject.spec.model.revision)
    spec = {
        "backoffLimit": JOB_RETRIES,
        "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
    }
    manifest = _child(subject, JOB, name, spec=spec)
    manifest["metadata"]["labels"] = labels
    return manifest


def engine_deployment(
    subject: Subject, market: Market, pool: PoolSpec, revision: str | None, replicas: int
) -> Json:
    """One Deployment per (tier, market), pinned to its zone.

    With one claim per zone (ReadWriteOnce) a new pod cannot start beside the old one; otherwise a
    new revision becomes ready before the old one drains.
    """
    spec = subject.spec
    labels = _labels(subject, names.ROLE_ENGINE, market.pool, market.zone)
    exclusive = spec.cache.access_mode == "ReadWriteOnce"
    rolling = {"maxSurge": 0 if exclusive else 1, "maxUnavailable": 1 if exclusive else 0}
    deployment = {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": round(durations.seconds(spec.engine.startup))
        + DEADLINE_MARGIN_S,
        "selector": {"matchLabels": dict(labels)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "template": {
            "metadata": {"labels": dict(labels)},
            "spec": _engine_pod(subject, market, pool, revision),
        },
    }
    name = names.engine_deployment(subject.ref.name, market.pool, market.zone)
    manifest = _child(subject, DEPLOYMENT, name, spec=deployment)
    manifest["metadata"]["labels"] = labels
    return manifest


def _engine_pod(subject: Subject, market: Market, pool: PoolSpec, revision: str | None) -> Json:
    spec = subject.spec
    zone = market.zone if spec.cache.access_mode == "ReadWriteOnce" else None
    volumes: list[Json] = [
        {
            "name": "cache",
            "persistentVolumeClaim": {"claimName": names.cache_claim(subject.ref.name, zone)},
        },
        {
            "name": "shm",
            "emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.shared_memory},
        },
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]
    mounts: list[Json] = [
        {"name": "cache", "mountPath": names.CACHE_MOUNT},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a volume of the pod
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod
        {"name": "home", "mountPath": engine_args.HOME},
    ]
    if spec.model.source.startswith("pvc://"):
        claim = spec.model.source.removeprefix("pvc://").partition("/")[0]
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": source})
        mounts.append({"name": "model", "mountPath": engine_args.MODEL_MOUNT, "readOnly": True})
    return {
        "serviceAccountName": names.service_account(subject.ref.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": engine_args.grace_s(spec),
        "nodeSelector": {**pool.node_selector, names.ZONE_LABEL: market.zone},
        "tolerations": _tolerations(pool),
        "securityContext": _pod_security(),
        "containers": [_engine_container(subject, revision, mounts)],
        "volumes": volumes,
    }


def _engine_container(subject: Subject, revision: str | None, mounts: list[Json]) -> Json:
    spec = subject.spec
    resources, gpu = spec.resources, spec.resources.gpu
    startup_s = durations.seconds(spec.engine.startup)
    health = {"httpGet": {"path": "/health", "port": names.ENGINE_PORT_NAME}}
    return {
        "name": names.ENGINE_CONTAINER,
        "image": spec.engine.image,
        "args": engine_args.argv(subject.ref.name, spec, revision),
        "env": engine_args.environment(spec),
        "ports": [
            {
                "name": names.ENGINE_PORT_NAME,
                "containerPort": names.ENGINE_PORT,
                "protocol": "TCP",
            }
        ],
        "resources": {
            "requests": {
                "cpu": resources.cpu,
                "memory": resources.memory,
                gpu.resource_name: str(gpu.count),
            },
            "limits": {"memory": resources.memory, gpu.resource_name: str(gpu.count)},
        },
        "securityContext": _container_security(),
        "lifecycle": {"preStop": {"sleep": {"seconds": engine_args.PRE_STOP_S}}},
        "startupProbe": {
            **health,
            "periodSeconds": STARTUP_PERIOD_S,
            "timeoutSeconds": 2,
            "failureThreshold": max(1, round(startup_s / STARTUP_PERIOD_S)),
        },
        "readinessProbe": {
            **health,
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _tolerations(pool: PoolSpec) -> list[Json]:
    own = [t.model_dump(by_alias=True, exclude_none=True) for t in pool.tolerations]
    silent = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": UNREACHABLE_S,
        }
        for state in ("not-ready", "unreachable")
    ]
    return own + silent


def _pod_security() -> Json:
    return {
        "runAsNonRoot": True,
        "runAsUser": RUN_AS,
        "runAsGroup": RUN_AS,
        "fsGroup": RUN_AS,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _labels(
    subject: Subject, role: str, pool: str | None = None, zone: str | None = None
) -> dict[str, str]:
    labels = names.tier_labels(subject.ref.name, role)
    if pool is not None:
        labels[names.LABEL_POOL] = pool
    if zone is not None:
        labels[names.LABEL_ZONE] = zone
    return labels


def _child(subject: Subject, kind: Kind, name: str, **body: object) -> Json:
    owner = {
        "apiVersion": TIER.api_version,
        "kind": TIER.kind,
        "name": subject.ref.name,
        "uid": subject.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": subject.ref.namespace,
            "labels": names.tier_labels(subject.ref.name, names.ROLE_ENGINE),
            "ownerReferences": [owner],
        },
        **body,
    }
