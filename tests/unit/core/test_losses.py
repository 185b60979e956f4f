"""What the operator learns of losses that go together, and keeps in `status.losses`."""

from __future__ import annotations

from spotinference.api.tier_status import LossesStatus, TierStatus
from spotinference.core import outlook
from spotinference.core.fleet import survey
from spotinference.core.outlook import Outlook
from spotinference.core.reconcile import decide
from tests.support.world import World, pool, world

EAST, WEST = ("us-east-1a", "us-east-1b"), ("us-west-2a",)


def serving(replicas: int = 3) -> World:
    """One replica in each zone."""
    w = world(scaling={"maxReplicas": 6}, placement={"pools": ["spot-a", "steady"]})
    w.pools = {"spot-a": pool((*EAST, *WEST)), "steady": pool(EAST[:1], "on-demand")}
    w.edit(replicas=replicas)
    w.run(120)
    w.writes.clear()
    return w


def view_of(w: World) -> Outlook:
    return outlook.of(survey(w.observe()), w.now, w.status.losses)


def test_two_zones_taken_seconds_apart_are_one_event() -> None:
    w = serving()
    assert w.status.losses is None
    prior = view_of(w).beliefs.joint.mean
    w.notice(w.node_of("spot-a/us-east-1a"), 30)
    w.step()
    assert w.status.losses == LossesStatus(neighbours=1)
    w.run(10)
    w.notice(w.node_of("spot-a/us-east-1b"), 30)
    w.run(5)
    assert w.status.losses == LossesStatus(neighbours=2, joint=2)
    assert view_of(w).beliefs.joint.mean > prior


def test_a_loss_that_comes_alone_makes_neighbours_less_feared() -> None:
    w = serving()
    prior = view_of(w).beliefs.joint.mean
    w.reclaim(w.node_of("spot-a/us-east-1a"))
    w.run(60)
    assert w.status.losses == LossesStatus(neighbours=1)
    assert view_of(w).beliefs.joint.mean < prior


def test_shares_are_written_with_the_market_that_lost_a_node_and_never_alone() -> None:
    w = serving()
    for zone in (*EAST, *WEST):
        for _ in range(120):
            before = w.status
            w.step()
            if w.status.losses != before.losses:
                assert _reclaims(w.status) != _reclaims(before)
        w.notice(w.node_of(f"spot-a/{zone}"), 30)
    w.run(600)
    kept = w.status.losses
    assert kept is not None
    w.settle()
    w.writes.clear()
    w.run(600)
    assert w.writes == []
    assert w.status.losses == kept


def test_a_restarted_operator_believes_the_same() -> None:
    w = serving()
    w.notice(w.node_of("spot-a/us-east-1a"), 30)
    w.notice(w.node_of("spot-a/us-east-1b"), 30)
    w.run(5)
    before = view_of(w).beliefs
    w.status = TierStatus.model_validate_json(w.status.model_dump_json(by_alias=True))
    assert view_of(w).beliefs == before
    assert decide(w.observe()).status is None


def test_a_status_that_somebody_wrote_nonsense_into_is_no_certainty() -> None:
    w = serving()
    w.status = w.status.model_copy(
        update={"losses": LossesStatus(whole=9, of_several=-3, joint=50, neighbours=2)}
    )
    beliefs = view_of(w).beliefs
    assert 0 < beliefs.joint.mean <= 1
    assert 0 < beliefs.whole.mean <= 1


def _reclaims(status: TierStatus) -> list[str | None]:
    return [m.reclaimed_at for m in status.markets]
