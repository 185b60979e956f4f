"""Topology files and loopback blocks: what a person writes, what they are told when it is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from spotinference import errors
from spotinference.api.pool import PoolSpec
from spotinference.devcluster import bootstrap, network, paths, topology

pytestmark = pytest.mark.cluster


def test_the_default_has_two_spot_pools_in_two_zones_and_one_on_demand_pool() -> None:
    shape = topology.default()
    kinds = [(pool.capacity_type, len(pool.zones)) for pool in shape.pools]
    assert kinds == [("spot", 2), ("spot", 2), ("on-demand", 1)]
    assert shape.zones == ["zone-a", "zone-b"]


@pytest.mark.parametrize("provider", ["gke", "eks", "karpenter", "nth", "aks", "generic"])
@pytest.mark.parametrize("capacity_type", ["spot", "on-demand"])
def test_a_pools_resource_selects_its_own_nodes_and_tolerates_all_their_taints(
    provider: str, capacity_type: str
) -> None:
    pools = [
        {
            "name": name,
            "provider": provider,
            "capacityType": capacity_type,
            "markets": [{"zone": "a"}],
            "taints": [{"key": "team", "value": "ml"}],
        }
        for name in ("one", "two")
    ]
    one, two = topology.Topology.model_validate({"pools": pools}).pools
    spec = PoolSpec.model_validate(bootstrap.gpu_pool(one)["spec"])
    selector = spec.node_selector.items()
    assert selector <= one.node_labels().items()
    assert not selector <= two.node_labels().items()
    assert {taint.key for taint in one.node_taints()} == {t.key for t in spec.tolerations}
    assert "team" in {t.key for t in spec.tolerations}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pools: []", "pools: List should have at least 1 item"),
        ("[]", "must be a mapping with the key 'pools'"),
        ("pools: {", "is not YAML"),
        ("pools: [{name: a, markets: [{zone: z, capacity: -1}]}]", "pools[0].markets[0].capacity:"),
        ("pools: [{name: a, bootDelay: 3 weeks, markets: [{zone: z}]}]", "pools[0].bootDelay:"),
        ("pools: [{name: a, bootDelay: -3, markets: [{zone: z}]}]", "must not be negative (is -3)"),
        ("pools: [{name: A, markets: [{zone: z}]}]", "pools[0].name:"),
        ("pools: [{name: a, markets: [{zone: z}], nodes: 3}]", "pools[0].nodes: Extra inputs"),
        ("pools: [{name: a, markets: [{zone: z}], provider: ibm}]", "(is 'ibm')"),
        ("pools: [{name: a, markets: [{zone: z}, {zone: z}]}]", "name zone 'z' twice"),
        (
            "pools: [{name: a, markets: [{zone: z}]}, {name: a, markets: [{zone: z}]}]",
            "two pools are named 'a'",
        ),
    ],
)
def test_a_wrong_topology_names_the_file_the_field_and_the_value(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "shape.yaml"
    file.write_text(text)
    with pytest.raises(errors.ConfigInvalid) as caught:
        topology.load(file)
    assert str(file) in str(caught.value)
    assert sentence in str(caught.value)


def test_a_topology_goes_to_the_supervisor_and_comes_back_the_same() -> None:
    shape = topology.default()
    assert topology.Topology.model_validate_json(shape.model_dump_json(by_alias=True)) == shape


# --- addresses ------------------------------------------------------------------------------------


def test_two_clusters_of_one_name_get_two_blocks_and_a_released_one_is_free_again() -> None:
    first, second = network.allocate("same"), network.allocate("same")
    assert first.prefix != second.prefix
    first.release()
    third = network.allocate("same")
    assert third.prefix == first.prefix
    second.release()
    third.release()


def test_a_block_in_which_anything_listens_is_not_used() -> None:
    """Processes of a killed cluster hold no lock, but still their addresses."""
    block = network.allocate("orphan")
    prefix = block.prefix
    block.release()
    with socket.socket() as orphan:
        orphan.bind((f"{prefix}.1.7", 0))
        orphan.listen()
        other = network.allocate("orphan")
        assert other.prefix != prefix
        other.release()


def test_pod_addresses_are_many_and_apart_from_the_control_planes() -> None:
    block = network.allocate("pods")
    pods = list(block.pods())
    assert len(set(pods)) > 60_000
    own = {block.apiserver, block.etcd, block.control, block.hub, block.operator, block.gateway}
    assert len(own) == 6
    assert own.isdisjoint(pods)
    block.release()


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "..", "a" * 41])
def test_a_cluster_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(errors.ConfigInvalid, match="use 1 to 40 lower-case letters"):
        paths.cluster(name)
