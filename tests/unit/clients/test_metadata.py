"""The three clouds' metadata services, spoken to over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest

from spotinference import errors
from spotinference.clients import metadata
from spotinference.clients.metadata import Asker, Aws, Azure, Gcp, Source, detect
from spotinference.core.announcements import Announcement
from spotinference.core.providers import AT_RISK, RECLAIM
from tests.support.eventually import eventually
from tests.support.metadata import AzureVm, Cloud, Ec2, Gce


def asker(session: aiohttp.ClientSession, url: str) -> Asker:
    return Asker(session, url, request_s=0.5)


NOON = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def test_aws_says_nothing_by_404_and_then_its_action_with_a_time(
    session: aiohttp.ClientSession,
) -> None:
    cloud = Ec2()
    async with cloud.serving() as url:
        aws = Aws(asker(session, url))
        assert await aws.answer() is None
        cloud.rebalance = {"noticeTime": "2026-11-01T11:50:00Z"}
        assert await aws.answer() == Announcement(AT_RISK, "aws: rebalance recommendation")
        cloud.action = {"action": "terminate", "time": "2026-11-01T12:00:00Z"}
        assert await aws.answer() == Announcement(
            RECLAIM, "aws: spot instance will terminate", NOON
        )
    assert sum(ask.startswith("PUT") for ask in cloud.asked) == 1


async def test_an_expired_aws_token_is_renewed(session: aiohttp.ClientSession) -> None:
    cloud = Ec2()
    async with cloud.serving() as url:
        aws = Aws(asker(session, url))
        await aws.answer()
        cloud.tokens.clear()
        cloud.action = {"action": "stop", "time": "2026-11-01T12:00:00Z"}
        found = await aws.answer()
        assert found is not None
        assert found.reason == RECLAIM


@pytest.mark.parametrize("body", ["", "[]", "{}", "<html>", '{"action": 5}'])
async def test_an_aws_document_that_is_none_is_unclear_not_nothing(
    session: aiohttp.ClientSession, body: str
) -> None:
    cloud = Ec2(action=body)
    async with cloud.serving() as url:
        with pytest.raises(errors.ApiUnavailable):
            await Aws(asker(session, url)).answer()


async def test_google_answers_the_moment_it_preempts(session: aiohttp.ClientSession) -> None:
    cloud = Gce()
    async with cloud.serving() as url:
        gcp = Gcp(asker(session, url), long_poll_s=20)
        assert await gcp.answer() is None
        waiting = asyncio.create_task(gcp.answer())
        await eventually(lambda: "wait_for_change=true" in cloud.asked[-1], 10)
        cloud.preempt()
        async with asyncio.timeout(10):
            assert await waiting == Announcement(RECLAIM, "gcp: preempted")


async def test_google_says_a_preemption_again_at_once_to_who_failed_to_pass_it_on(
    session: aiohttp.ClientSession,
) -> None:
    cloud = Gce()
    async with cloud.serving() as url:
        gcp = Gcp(asker(session, url), long_poll_s=20)
        assert await gcp.answer() is None
        cloud.preempt()
        cloud.maintenance_fault = 503
        async with asyncio.timeout(10):
            with pytest.raises(errors.ApiUnavailable):
                await gcp.answer()  # the preemption is read, the other value is not
            cloud.maintenance_fault = None
            goes = Announcement(RECLAIM, "gcp: preempted")
            assert [await gcp.answer(), await gcp.answer()] == [goes, goes]


async def test_google_without_a_change_is_asked_again_and_tells_of_maintenance(
    session: aiohttp.ClientSession,
) -> None:
    cloud = Gce(maintenance="TERMINATE_ON_HOST_MAINTENANCE")
    async with cloud.serving() as url:
        gcp = Gcp(asker(session, url), long_poll_s=0)
        hint = Announcement(AT_RISK, "gcp: host maintenance will end the machine")
        assert [await gcp.answer(), await gcp.answer()] == [hint, hint]


async def test_who_does_not_say_google_is_not_believed(session: aiohttp.ClientSession) -> None:
    async with Gce(flavour=None).serving() as url:
        gcp = Gcp(asker(session, url))
        assert not await gcp.present()
        with pytest.raises(errors.ApiUnavailable):
            await gcp.answer()


async def test_azure_announces_for_a_whole_scale_set_and_only_ours_counts(
    session: aiohttp.ClientSession,
) -> None:
    cloud = AzureVm()
    async with cloud.serving() as url:
        azure = Azure(asker(session, url))
        cloud.announce("Preempt", of="aks-spot_4")
        cloud.announce("Freeze")
        assert await azure.answer() is None
        cloud.announce("Reboot")
        assert await azure.answer() == Announcement(AT_RISK, "azure: Reboot")
        cloud.announce("Preempt", not_before="Sun, 01 Nov 2026 12:00:00 GMT")
        assert await azure.answer() == Announcement(RECLAIM, "azure: Preempt", NOON)
        for event in cloud.events:
            event["EventStatus"] = "Canceled"
        assert await azure.answer() is None


async def test_azures_first_answer_may_take_its_time_and_the_next_may_not(
    session: aiohttp.ClientSession,
) -> None:
    cloud = AzureVm(slow_s=0.3)
    async with cloud.serving() as url:
        azure = Azure(asker(session, url), first_s=30)
        assert await azure.answer() is None
        cloud.slow_s = 30
        with pytest.raises(errors.ApiUnavailable):
            await azure.answer()


CLOUDS = [(Ec2, Aws), (Gce, Gcp), (AzureVm, Azure)]


@pytest.mark.parametrize(("server", "client"), CLOUDS)
@pytest.mark.parametrize("fault", [302, 403, 410, 429, 500, 503, "hang"])
async def test_whatever_fails_is_unclear_never_nothing(
    session: aiohttp.ClientSession,
    server: type[Cloud],
    client: type[Aws | Gcp | Azure],
    fault: int | str,
) -> None:
    cloud = server()
    async with cloud.serving() as url:
        source: Source = client(asker(session, url))
        assert await source.answer() is None
        cloud.fault = fault
        if isinstance(source, Gcp):
            source.long_poll_s = 0
        async with asyncio.timeout(10):
            with pytest.raises(errors.ApiUnavailable):
                await source.answer()
        cloud.fault = None
        assert await source.answer() is None


async def test_an_answer_without_end_is_given_up_at_its_bound(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "MAX_BODY_BYTES", 1000)
    async with Ec2(action="x" * 2000).serving() as url:
        with pytest.raises(errors.ApiUnavailable, match="too long"):
            await Aws(asker(session, url)).answer()


@pytest.mark.parametrize(
    ("provider_id", "cloud"),
    [
        ("aws:///us-east-1a/i-0", "aws"),
        ("gce://p/z/n", "gcp"),
        ("azure:///subscriptions/0", "azure"),
    ],
)
async def test_the_cloud_is_known_by_the_nodes_provider_id(
    session: aiohttp.ClientSession, provider_id: str, cloud: str
) -> None:
    assert await detect(provider_id, asker(session, "http://127.0.0.1:9")) == cloud


@pytest.mark.parametrize(("server", "name"), [(Ec2, "aws"), (Gce, "gcp"), (AzureVm, "azure")])
async def test_without_a_provider_id_the_cloud_is_who_answers(
    session: aiohttp.ClientSession, server: type[Cloud], name: str
) -> None:
    async with server().serving() as url:
        assert await detect("", asker(session, url)) == name
    assert await detect("", asker(session, "http://127.0.0.1:9")) is None
