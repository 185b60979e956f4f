"""The chart, rendered: lint, schema of the values, what every object must have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from spotinference import __version__
from spotinference.api import crd
from spotinference.api.kinds import Json
from tests.support import tools

VALUES: dict[str, Json] = {
    "defaults": {},
    "one-of-each": {"operator": {"replicas": 1}, "gateway": {"replicas": 1}},
    "mirror": {
        "image": {"repository": "mirror.example.com:5000/spot", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "mirror"}],
        "operator": {"hubEndpoint": "http://hub.example.com"},
    },
    "placed": {
        "fullnameOverride": "llm",
        "gateway": {
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"team": "a"},
            "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        },
    },
    "billed": {
        "gateway": {
            "usage": {
                "url": "https://ledger.example.com:8443/v1/usage",
                "port": 8443,
                "existingClaim": "usage",
            }
        }
    },
    "watched": {
        "nodeWatch": {
            "enabled": True,
            "provider": "aws",
            "nodeSelector": {"karpenter.sh/capacity-type": "spot"},
            "podAnnotations": {"team": "a"},
        },
        "imagePullSecrets": [{"name": "mirror"}],
    },
    "open": {"networkPolicy": {"enabled": False}, "crds": {"install": False}},
    "closed": {
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"llm": "yes"}}}],
            "scrapers": [{"podSelector": {}}],
            "apiServerPorts": [6443],
        },
        "crds": {"keep": False},
    },
}

REFUSED: dict[str, Json] = {
    "unknown value": {"operator": {"replica": 2}},
    "text for a number": {"gateway": {"replicas": "two"}},
    "tag latest": {"image": {"tag": "latest"}},
    "tag in the repository": {"image": {"repository": "ghcr.io/a/b:v1"}},
    "digest": {"image": {"digest": "sha256:abc"}},
    "unknown service type": {"gateway": {"service": {"type": "Loadbalancer"}}},
    "usage to a file": {"gateway": {"usage": {"url": "file:///tmp/usage"}}},
    "no keys": {"gateway": {"keysSecret": ""}},
    "hub without a scheme": {"operator": {"hubEndpoint": "hub.example.com"}},
    "unknown cloud": {"nodeWatch": {"provider": "ibm"}},
    "no API server port": {"networkPolicy": {"apiServerPorts": []}},
}


def values_file(folder: Path, values: Json) -> str:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def rendered(folder: Path, values: Json | None = None) -> list[Json]:
    text = tools.output(
        "helm",
        "template",
        "spot",
        tools.chart(),
        *("--namespace", "llm-system", "--values", values_file(folder, values or {})),
    )
    return [body for body in yaml.safe_load_all(text) if body]


def of_kind(objects: list[Json], kind: str) -> list[Json]:
    return [body for body in objects if body["kind"] == kind]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_lint_finds_nothing(tmp_path: Path, values: Json) -> None:
    out = tools.output(
        "helm", "lint", "--strict", tools.chart(), "--values", values_file(tmp_path, values)
    )
    assert "0 chart(s) failed" in out


@pytest.mark.parametrize("values", REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused_with_their_name(tmp_path: Path, values: Json) -> None:
    arguments = ("template", "spot", tools.chart(), "--values", values_file(tmp_path, values))
    done = tools.run("helm", *arguments)
    assert done.returncode != 0
    (group,) = values
    (name,) = values[group]
    assert name in done.stderr, done.stderr


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_carries_the_chart_s_labels(tmp_path: Path, values: Json) -> None:
    for body in rendered(tmp_path, values):
        labels = body["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "spotinference", body["kind"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_the_chart_s_version_is_the_package_s() -> None:
    chart = yaml.safe_load((Path(tools.chart()) / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_crds_are_the_generated_ones_and_survive_uninstalling(tmp_path: Path) -> None:
    found = of_kind(rendered(tmp_path), "CustomResourceDefinition")
    assert [body["spec"] for body in found] == [body["spec"] for body in crd.definitions().values()]
    kept = [body["metadata"]["annotations"]["helm.sh/resource-policy"] for body in found]
    assert kept == ["keep", "keep"]
    assert not of_kind(rendered(tmp_path, VALUES["open"]), "CustomResourceDefinition")


def test_rights_are_the_rules_files_and_nothing_else(tmp_path: Path) -> None:
    """`dev up` grants the same files, so what the cluster tests use is what users get."""
    objects = rendered(tmp_path)
    files = Path(tools.chart()) / "files"
    for kind, part, file in (
        ("ClusterRole", "operator", "operator-rules.yaml"),
        ("ClusterRole", "gateway", "gateway-rules.yaml"),
        ("Role", "operator", "operator-namespace-rules.yaml"),
        ("Role", "gateway", "gateway-namespace-rules.yaml"),
    ):
        role = next(
            body for body in of_kind(objects, kind) if body["metadata"]["name"] == f"spot-{part}"
        )
        assert role["rules"] == yaml.safe_load((files / file).read_text())
    assert len(of_kind(objects, "ClusterRole")) == 2
    assert len(of_kind(objects, "Role")) == 2
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        for binding in of_kind(objects, kind):
            assert [subject["name"] for subject in binding["subjects"]] == [
                binding["roleRef"]["name"]
            ]


def test_node_watch_is_off_until_asked_for_and_may_write_conditions_only(tmp_path: Path) -> None:
    assert not of_kind(rendered(tmp_path), "DaemonSet")
    objects = rendered(tmp_path, VALUES["watched"])
    own = [b for b in objects if b["metadata"]["name"] == "spot-node-watch"]
    roles = [b for b in own if b["kind"] in {"ClusterRole", "Role"}]
    rules = Path(tools.chart()) / "files" / "node-watch-rules.yaml"
    assert [role["rules"] for role in roles] == [yaml.safe_load(rules.read_text())]
    (policy,) = of_kind(own, "ValidatingAdmissionPolicy")
    (condition,) = policy["spec"]["matchConditions"]
    assert "system:serviceaccount:llm-system:spot-node-watch" in condition["expression"]


def test_node_watch_runs_on_every_spot_node_without_privileges(tmp_path: Path) -> None:
    (daemons,) = of_kind(rendered(tmp_path, VALUES["watched"]), "DaemonSet")
    pod = daemons["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["hostNetwork"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["args"] == ["node-watch"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} <= container["resources"].keys()


def test_node_watch_is_permitted_where_the_system_s_priority_needs_a_quota(tmp_path: Path) -> None:
    objects = rendered(tmp_path, VALUES["watched"])
    (daemons,) = of_kind(objects, "DaemonSet")
    (quota,) = of_kind(objects, "ResourceQuota")
    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert scope["scopeName"] == "PriorityClass"
    assert scope["values"] == [daemons["spec"]["template"]["spec"]["priorityClassName"]]
    own = {"nodeWatch": {"enabled": True, "priorityClassName": "mine"}}
    assert not of_kind(rendered(tmp_path, own), "ResourceQuota")


def test_no_right_covers_secrets_or_everything(tmp_path: Path) -> None:
    for role in (*of_kind(rendered(tmp_path), "ClusterRole"), *of_kind(rendered(tmp_path), "Role")):
        for rule in role["rules"]:
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]
            assert not {"secrets", "pods/exec", "roles", "clusterroles"} & set(rule["resources"])


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_are_bounded_probed_and_run_without_privileges(tmp_path: Path, values: Json) -> None:
    deployments = of_kind(rendered(tmp_path, values), "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"requests", "limits"} <= container["resources"].keys()
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_a_pod_that_never_gets_ready_does_not_keep_its_node_from_being_drained(
    tmp_path: Path,
) -> None:
    budgets = of_kind(rendered(tmp_path), "PodDisruptionBudget")
    assert len(budgets) == 2
    for budget in budgets:
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_engines_let_in_the_pods_that_the_chart_labels(tmp_path: Path) -> None:
    """The operator's NetworkPolicies for engines select gateway and operator by this label."""
    for deployment in of_kind(rendered(tmp_path), "Deployment"):
        component = deployment["metadata"]["name"].removeprefix("spot-")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == component


def test_the_gateway_finds_its_peers_and_its_namespace(tmp_path: Path) -> None:
    """By the labels of its own pods: replicas share the limits of keys."""
    (gateway,) = [
        body
        for body in of_kind(rendered(tmp_path), "Deployment")
        if body["metadata"]["name"] == "spot-gateway"
    ]
    template = gateway["spec"]["template"]
    env = {entry["name"]: entry for entry in template["spec"]["containers"][0]["env"]}
    pairs = env["SPOTINFERENCE_GATEWAY_PEERS_SELECTOR"]["value"].split(",")
    assert dict(pair.split("=") for pair in pairs) == gateway["spec"]["selector"]["matchLabels"]
    source = env["SPOTINFERENCE_GATEWAY_NAMESPACE"]["valueFrom"]
    assert source == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_usage_records_are_kept_on_the_claim_and_may_leave(tmp_path: Path) -> None:
    objects = rendered(tmp_path, VALUES["billed"])
    (gateway,) = [
        body
        for body in of_kind(objects, "Deployment")
        if body["metadata"]["name"] == "spot-gateway"
    ]
    volumes = {volume["name"]: volume for volume in gateway["spec"]["template"]["spec"]["volumes"]}
    assert volumes["usage"]["persistentVolumeClaim"] == {"claimName": "usage"}
    ports = [
        [port["port"] for rule in body["spec"]["egress"] for port in rule["ports"]]
        for body in of_kind(objects, "NetworkPolicy")
    ]
    assert [8443 in of for of in ports] == [False, True]


def test_gateways_may_talk_to_each_other(tmp_path: Path) -> None:
    """A retry or a resumed stream is forwarded to the replica that keeps the answer."""
    (policy,) = [
        body
        for body in of_kind(rendered(tmp_path, VALUES["closed"]), "NetworkPolicy")
        if body["metadata"]["name"] == "spot-gateway"
    ]
    own = {"podSelector": policy["spec"]["podSelector"]}
    into = [rule for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == "http"]
    out_of = [rule for rule in policy["spec"]["egress"] if rule["ports"][0]["port"] == "http"]
    assert [own in rule["from"] for rule in into] == [True]
    assert [rule["to"] for rule in out_of] == [[own]]


def test_the_gateway_has_time_to_finish_answers(tmp_path: Path) -> None:
    (gateway,) = [
        body
        for body in of_kind(rendered(tmp_path, {"gateway": {"drainSeconds": 60}}), "Deployment")
        if body["metadata"]["name"] == "spot-gateway"
    ]
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 75


def test_the_notes_say_how_to_make_a_key_and_the_first_tier(tmp_path: Path) -> None:
    out = tools.output(
        "helm", "install", "spot", tools.chart(), "--dry-run=client", "-n", "llm-system"
    )
    assert "spotinference keys create" in out
    assert "kubectl apply -f examples/minimal.yaml" in out


def test_the_schema_of_the_values_describes_every_default() -> None:
    chart = Path(tools.chart())
    schema = json.loads((chart / "values.schema.json").read_text())
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    assert defaults.keys() == schema["properties"].keys() - {"global"}
    for part in ("operator", "gateway", "nodeWatch", "image", "networkPolicy", "crds"):
        assert defaults[part].keys() == schema["properties"][part]["properties"].keys()
