"""The chart on a real API server: schemas, Pod Security, install, upgrade, uninstall."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from spotinference import errors
from spotinference.api import demand
from spotinference.api.kinds import LEASE, NODE, POD, SECRET, Json
from spotinference.clients.kube import Kube
from tests.chart.test_chart_render import VALUES, of_kind, rendered, values_file
from tests.support import schemas, specs, tools
from tests.support.cluster import LiveCluster, MakeCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
async def test_every_object_obeys_the_schemas_of_our_own_api_server(
    cluster: LiveCluster, schema_folder: Path, tmp_path: Path, values: Json
) -> None:
    if not any(schema_folder.iterdir()):
        await schemas.dump(cluster, schema_folder)
    objects = tmp_path / "objects.yaml"
    objects.write_text(yaml.safe_dump_all(rendered(tmp_path, values)))
    location = f"{schema_folder}/{schemas.LOCATION}"
    out = tools.output(
        "kubeconform", "-strict", "-summary", "-schema-location", location, str(objects)
    )
    assert "Invalid: 0, Errors: 0, Skipped: 0" in out


async def test_kubeconform_with_these_schemas_finds_a_misspelt_field(
    cluster: LiveCluster, schema_folder: Path, tmp_path: Path
) -> None:
    if not any(schema_folder.iterdir()):
        await schemas.dump(cluster, schema_folder)
    (deployment, _) = of_kind(rendered(tmp_path), "Deployment")
    deployment["spec"]["replica"] = 1
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(deployment))
    location = f"{schema_folder}/{schemas.LOCATION}"
    done = tools.run("kubeconform", "-strict", "-schema-location", location, str(file))
    assert done.returncode != 0
    assert "replica" in done.stdout


@pytest.fixture(scope="session")
def schema_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemas")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
async def test_pods_are_admitted_where_pod_security_is_restricted(
    cluster: LiveCluster, tmp_path: Path, values: Json
) -> None:
    namespace = await restricted_namespace(cluster, "chart-dry-run")
    for deployment in of_kind(rendered(tmp_path, values), "Deployment"):
        account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
        await cluster.kubectl("apply", "-f", "-", stdin=service_account(namespace, account))
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **deployment["spec"]["template"]["metadata"],
                "name": deployment["metadata"]["name"],
                "namespace": namespace,
            },
            "spec": deployment["spec"]["template"]["spec"],
        }
        out = await cluster.kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod)
        )
        assert "created (server dry run)" in out


def service_account(namespace: str, name: str) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    }
    return yaml.safe_dump(body)


async def restricted_namespace(cluster: LiveCluster, name: str) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))
    return name


async def test_install_upgrade_and_uninstall_keep_the_users_tiers(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """On an API server without our CRDs, in a namespace that enforces *restricted*."""
    cluster = await make_cluster(operator=False, gateway=False)
    await cluster.kubectl("delete", "crd", "--all", "--wait=true")
    namespace = await restricted_namespace(cluster, "llm-system")
    helm = Helm(cluster, namespace)

    await helm("install", "--values", values_file(tmp_path, {}))
    await cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")

    async def all_pods_admitted() -> bool:
        out = await cluster.kubectl("-n", namespace, "get", "pods", "-o", "json")
        return len(json.loads(out)["items"]) == 4

    await eventually(all_pods_admitted, 30, "two operators and two gateways")
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(specs.tier("kept")))

    upgraded = values_file(tmp_path, {"gateway": {"replicas": 3}})
    await helm("upgrade", "--values", upgraded)
    out = await cluster.kubectl("-n", namespace, "get", "deployment", "spot-gateway", "-o", "json")
    assert json.loads(out)["spec"]["replicas"] == 3

    await helm("uninstall")
    assert "kept" in await cluster.kubectl("get", "itier")
    out = await cluster.kubectl("-n", namespace, "get", "deployment", "-o", "name")
    assert out == ""


class Helm:
    """Helm as admin of a cluster, on one release called `spot`."""

    def __init__(self, cluster: LiveCluster, namespace: str) -> None:
        self._env = {"KUBECONFIG": cluster.state.kubeconfig}
        self._namespace = namespace

    async def __call__(self, action: str, *options: str) -> str:
        source = [] if action == "uninstall" else [tools.chart()]
        return await asyncio.to_thread(
            lambda: tools.output(
                "helm", action, "spot", *source, "-n", self._namespace, *options, env=self._env
            )
        )


async def test_both_processes_have_in_the_embedded_cluster_the_rights_of_the_chart(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    roles = {
        (kind, body["metadata"]["name"].replace("spot-", "spotinference-")): body["rules"]
        for kind in ("ClusterRole", "Role")
        for body in of_kind(rendered(tmp_path), kind)
    }
    for (kind, name), rules in roles.items():
        out = await cluster.kubectl("-n", "spotinference", "get", kind, name, "-o", "json")
        assert json.loads(out)["rules"] == rules


async def test_a_gateway_writes_demand_and_no_other_lease(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    """Kubelets and leaders live by Leases; RBAC alone lets whoever holds one write all."""
    namespace = "llm-gateway"
    await cluster.kubectl("create", "namespace", namespace)
    text = tools.output(
        "helm",
        *("template", "spot", tools.chart(), "-n", namespace),
        *("--show-only", "templates/gateway-rbac.yaml"),
    )
    await cluster.kubectl("apply", "-f", "-", stdin=text)
    token = await cluster.kubectl("-n", namespace, "create", "token", "spot-gateway")
    now = datetime.now(UTC)
    own = demand.lease(
        namespace=namespace,
        tier="demanded",
        tier_uid="none",
        demand=demand.Demand(gateway_id="gateway-0", parked=1, oldest_parked_at=now),
        renewed_at=now,
    )
    del own["metadata"]["ownerReferences"]  # without its tier it would be collected at once
    foreign = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "leader", "namespace": namespace},
        "spec": {"holderIdentity": "an-operator"},
    }
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(foreign))

    async with await Kube.connect(
        field_manager="gateway", kubeconfig=with_token(cluster, token, tmp_path)
    ) as kube:

        async def policy_holds() -> bool:
            try:
                await kube.apply(LEASE, foreign | {"spec": {"holderIdentity": "me"}})
            except (errors.InvalidInput, errors.Forbidden) as error:  # roles come late as well
                return "role=demand only" in str(error)
            return False

        await eventually(policy_holds, 30, "the policy is in force")
        await kube.apply(LEASE, own)
        await kube.apply(LEASE, own)
        for attempt in (
            kube.delete(LEASE, "leader", namespace),
            # Neither taken over by a label nor given away by taking it off.
            kube.merge_patch(
                LEASE, "leader", namespace, {"metadata": {"labels": own["metadata"]["labels"]}}
            ),
            kube.merge_patch(
                LEASE, own["metadata"]["name"], namespace, {"metadata": {"labels": None}}
            ),
            kube.apply(LEASE, foreign | {"metadata": {"name": "new", "namespace": namespace}}),
        ):
            with pytest.raises(errors.InvalidInput, match="role=demand only"):
                await attempt
        await kube.delete(LEASE, own["metadata"]["name"], namespace)
    await cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def with_token(cluster: LiveCluster, token: str, folder: Path) -> Path:
    """A kubeconfig for whoever the token speaks for."""
    config = yaml.safe_load(Path(cluster.state.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": token.strip()}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


async def test_node_watch_speaks_for_its_own_node_only(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    namespace = "llm-watch"
    node = {"apiVersion": "v1", "kind": "Node"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "watch", "namespace": namespace},
        "spec": {
            "nodeName": "watched-own",
            "serviceAccountName": "spot-node-watch",
            "containers": [{"name": "c", "image": "none"}],
        },
    }
    await cluster.kubectl("create", "namespace", namespace)
    text = tools.output(
        "helm",
        *("template", "spot", tools.chart(), "-n", namespace),
        *("--set", "nodeWatch.enabled=true", "--show-only", "templates/node-watch.yaml"),
    )
    # The pods of the DaemonSet itself are of no interest here.
    bodies = [body for body in yaml.safe_load_all(text) if body["kind"] != "DaemonSet"]
    bodies += [{**node, "metadata": {"name": name}} for name in ("watched-own", "watched-other")]
    await cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([*bodies, pod]))
    uid = await cluster.kubectl(
        "-n", namespace, "get", "pod/watch", "-o", "jsonpath={.metadata.uid}"
    )
    bound = ("--bound-object-kind=Pod", "--bound-object-name=watch", f"--bound-object-uid={uid}")
    token = await cluster.kubectl("-n", namespace, "create", "token", "spot-node-watch", *bound)

    async with await Kube.connect(
        field_manager="watch", kubeconfig=with_token(cluster, token, tmp_path)
    ) as kube:

        async def announce(name: str) -> Json:
            status = {"conditions": [{"type": "x", "status": "True"}]}
            body = {**node, "metadata": {"name": name}, "status": status}
            return await kube.apply(NODE, body, subresource="status")

        async def policy_holds() -> bool:
            try:
                await announce("watched-other")
            except (errors.InvalidInput, errors.Forbidden) as error:  # roles come late as well
                return "its own node only" in str(error)
            return False

        async def uncordoned() -> bool:
            try:  # the node's controller answers a cordon with a taint; node-watch tries again, too
                live = await kube.apply(NODE, own_node)
            except errors.InvalidInput:
                return False
            return not live["spec"].get("unschedulable")

        await eventually(policy_holds, 30, "the policy is in force")
        await announce("watched-own")
        own_node, other = ({**node, "metadata": {"name": f"watched-{n}"}} for n in ("own", "other"))
        cordon = {"spec": {"unschedulable": True}}
        assert (await kube.apply(NODE, own_node | cordon))["spec"]["unschedulable"] is True
        await eventually(uncordoned, 30, "its cordon is gone")
        with pytest.raises(errors.InvalidInput, match="own node only"):
            await kube.apply(NODE, other | cordon)
        for change in (
            {"metadata": {"labels": {"pool": "mine"}}},
            {"metadata": {"annotations": {"a": "b"}}},
            {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}},
        ):
            with pytest.raises(errors.InvalidInput, match="neither taints, labels nor annotations"):
                await kube.merge_patch(NODE, "watched-own", None, change)
        for meta in ({"labels": {"pool": "mine"}}, {"annotations": {"a": "b"}}):
            with pytest.raises(errors.InvalidInput, match="neither taints, labels nor annotations"):
                # The API server takes these through the status as well.
                await kube.merge_patch(
                    NODE, "watched-own", None, {"metadata": meta}, subresource="status"
                )
        for verb, kind in (("create", NODE), ("list", NODE), ("list", SECRET), ("list", POD)):
            assert not await kube.allowed(verb, kind), f"{verb} {kind.plural}"
    for name in ("watched-own", "watched-other"):
        await cluster.kubectl("delete", "node", name)
    await cluster.kubectl("delete", "namespace", namespace, "--wait=false")
