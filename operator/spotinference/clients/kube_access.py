"""The way to an API server: a kubeconfig's or the pod's, its credentials and its proxy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio import client as k8s
from kubernetes.aio import config as k8s_config

from spotinference import errors

CONNECTIONS = 64
PLUGIN_TIMEOUT_S = 120.0
"""For an exec plugin; one that opens a browser needs a person."""

_UNUSABLE = (
    *(k8s_config.ConfigException, OSError, yaml.YAMLError),
    *(ValueError, TypeError, KeyError, AttributeError),
)
"""What the library raises for a file that is no kubeconfig, or names no certificates (ssl's errors
are OSErrors)."""


async def configuration(kubeconfig: Path | None) -> k8s.Configuration:
    """Of a kubeconfig file, else in-cluster; `ConfigInvalid` says what is missing."""
    way = k8s.Configuration()
    try:
        if kubeconfig is not None:
            await _read(kubeconfig, way)
        else:
            k8s_config.load_incluster_config(client_configuration=way)
        return _tuned(way)
    except _UNUSABLE as error:
        where = str(kubeconfig) if kubeconfig else "the pod's ServiceAccount"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise errors.ConfigInvalid(
            f"no way to the Kubernetes API through {where}: {reason}. "
            "Pass --kubeconfig FILE, or run in a pod with a ServiceAccount."
        ) from error


async def _read(kubeconfig: Path, way: k8s.Configuration) -> None:
    async with asyncio.timeout(PLUGIN_TIMEOUT_S):
        loader = await k8s_config.load_kube_config(
            config_file=str(kubeconfig), client_configuration=way
        )
    # The loader says nowhere else what kind of user it read.
    if "exec" not in (loader._user or ()):  # noqa: SLF001
        return
    if not way.api_key and not way.cert_file:
        # The library logs why and would go on as nobody.
        command = loader._user["exec"].value.get("command")  # noqa: SLF001
        raise k8s_config.ConfigException(
            f"its exec plugin gave no credentials (the log has its reason): run {command!r} by hand "
            "and mend what it says"
        )
    if hasattr(loader, "exec_plugin_expiry"):
        way.refresh_api_key_hook = _Renewal(loader)


class _Renewal:
    """Tokens of exec plugins live for minutes: the plugin is asked again when one has ended."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._asking = asyncio.Lock()

    async def __call__(self, way: k8s.Configuration) -> None:
        async with asyncio.timeout(PLUGIN_TIMEOUT_S), self._asking:
            await self._loader.load_from_exec_plugin()  # at once while the token has time left
        way.api_key["BearerToken"] = self._loader.token


def _tuned(way: k8s.Configuration) -> k8s.Configuration:
    way.connection_pool_maxsize = CONNECTIONS
    way.disable_strict_ssl_verification = True
    # aiohttp would ask a thread for the proxy, and one for ~/.netrc, before every request: where
    # fifty replacements are asked for at once, each waits its turn at the interpreter's lock.
    way.client_session_kwargs = {"trust_env": False}
    if way.proxy is None:
        way.proxy = _environment_proxy(way.host)
    return way


def _environment_proxy(server: str) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY and NO_PROXY say now about the API server."""
    parts = urlsplit(server)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
