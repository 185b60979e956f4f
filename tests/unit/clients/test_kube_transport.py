"""How requests to the API server travel: without a thread, through the proxy of the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from spotinference import errors
from spotinference.api.kinds import NODE, Json
from spotinference.clients.kube import Kube


def kubeconfig(folder: Path, server: str, user: Json | None = None) -> Path:
    path = folder / "kubeconfig"
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server}}],
        "users": [{"name": "x", "user": user or {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(yaml.safe_dump(body))
    return path


@asynccontextmanager
async def api_server(seen: list[str], tokens: list[str] | None = None) -> AsyncIterator[str]:
    tokens = [] if tokens is None else tokens

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        tokens.append(request.headers.get("Authorization", ""))
        return web.json_response({"kind": "Node", "metadata": {"name": "n"}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_no_request_waits_for_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> NoReturn:
        raise AssertionError("a thread was asked")

    async with api_server([]) as url:
        config = kubeconfig(tmp_path, url)
        async with await Kube.connect(field_manager="test", kubeconfig=config) as kube:
            monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", no_thread)
            assert (await kube.get(NODE, "n"))["metadata"]["name"] == "n"


async def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    async with api_server(seen) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        config = kubeconfig(tmp_path, "http://api.example.test:6443")
        async with await Kube.connect(field_manager="test", kubeconfig=config) as kube:
            await kube.get(NODE, "n")
    assert seen == ["http://api.example.test:6443/api/v1/nodes/n"]


async def test_what_no_proxy_names_is_reached_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with api_server([]) as url:
        config = kubeconfig(tmp_path, url)
        async with await Kube.connect(field_manager="test", kubeconfig=config) as kube:
            await kube.get(NODE, "n")


@pytest.mark.fault(5)
@pytest.mark.parametrize("cut", [b'{"type": "MODIF', b"\xff\n"])
async def test_a_watch_that_is_cut_within_an_event_is_begun_anew(
    tmp_path: Path, cut: bytes
) -> None:
    """A proxy on the way may end the body in order in the middle of a line."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=cut)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        config = kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}")
        async with await Kube.connect(field_manager="test", kubeconfig=config) as kube:
            with pytest.raises(errors.ApiUnavailable):
                async for _ in kube.watch(NODE, resource_version="1"):
                    pass
            with pytest.raises(errors.ApiUnavailable):
                await kube.create(NODE, {"metadata": {"name": "n"}})


NO_CERTIFICATE = """{kind: Config, current-context: x, contexts: [{name: x, context: {cluster: x}}],
clusters: [{name: x, cluster: {server: "https://127.0.0.1:1", certificate-authority-data: Zm9v}}]}"""


@pytest.mark.parametrize("text", ["", "text", "a: [b", "\xff\xfe\x00", "[]", NO_CERTIFICATE])
async def test_what_is_no_kubeconfig_is_said_in_one_sentence(tmp_path: Path, text: str) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(text, encoding="latin-1")
    with pytest.raises(errors.ConfigInvalid, match=rf"{config}: [^\n]+ Pass --kubeconfig"):
        await Kube.connect(field_manager="test", kubeconfig=config)


def plugin(folder: Path, script: str) -> Json:
    file = folder / "plugin"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(file)}}


GIVES_NUMBERED_TOKENS = """
echo x >> {folder}/asked
token=token-$(grep -c x {folder}/asked)
echo '{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
  "status": {{"token": "'$token'", "expirationTimestamp": "{expiry}"}}}}'
"""


@pytest.mark.parametrize(
    ("expiry", "expected"),
    [
        ("2020-01-01T00:00:00Z", ["Bearer token-2", "Bearer token-3"]),
        ("2120-01-01T00:00:00Z", ["Bearer token-1", "Bearer token-1"]),
    ],
)
async def test_an_exec_plugin_is_asked_again_when_its_token_has_ended(
    tmp_path: Path, expiry: str, expected: list[str]
) -> None:
    tokens: list[str] = []
    user = plugin(tmp_path, GIVES_NUMBERED_TOKENS.format(folder=tmp_path, expiry=expiry))
    async with api_server([], tokens) as url:
        config = kubeconfig(tmp_path, url, user)
        async with await Kube.connect(field_manager="test", kubeconfig=config) as kube:
            for _ in expected:
                await kube.get(NODE, "n")
    assert tokens == expected


async def test_a_failing_exec_plugin_is_named_instead_of_going_on_as_nobody(
    tmp_path: Path,
) -> None:
    config = kubeconfig(tmp_path, "http://127.0.0.1:1", plugin(tmp_path, "exit 3"))
    with pytest.raises(errors.ConfigInvalid, match=r"no credentials .*: run '.*/plugin' by hand"):
        await Kube.connect(field_manager="test", kubeconfig=config)
