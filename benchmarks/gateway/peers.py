"""What is measured: how each system is got, started, and told apart in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway import install, processes
from benchmarks.gateway.cluster import KEY
from benchmarks.gateway.install import Missing
from spotinference import __version__

MODEL = "demo"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the mock is, and what the gateway needs to find it."""

    ip: str
    port: int
    kubeconfig: Path
    keys: Path

    @property
    def url(self) -> str:
        return f"http://{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that listens on the given port of 127.0.0.1."""

    version: str
    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    launch: Callable[[Upstream, int, Path], Launch]
    """(upstream, port, folder for its files); raises `Missing`"""
    model: str = MODEL
    note: str = ""


def _ours(upstream: Upstream, port: int, folder: Path) -> Launch:
    home = install.environment("spotinference", install.ROOT / "requirements" / "runtime.txt")
    command = [
        str(home / "python"), "-m", "spotinference", "gateway", "run",
        "--kubeconfig", str(upstream.kubeconfig), "--keys-file", str(upstream.keys),
        "--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0",
        "--announce", str(folder / "announce.json"), "--log-level", "warning",
    ]  # fmt: skip
    environment = {
        "PYTHONPATH": str(install.ROOT / "operator"),
        "SPOTINFERENCE_GATEWAY_USAGE_SPOOL": str(folder / "usage"),
    }
    return Launch(__version__, command, environment)


NGINX_CONF = """
daemon off;
worker_processes 1;
error_log stderr crit;
pid {folder}/nginx.pid;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engines {{ server {ip}:{upstream}; keepalive 4096; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def _nginx(upstream: Upstream, port: int, folder: Path) -> Launch:
    binary, environment = install.nginx()
    libraries = {name: environment[name] for name in ("LD_LIBRARY_PATH",) if name in environment}
    config = folder / "nginx.conf"
    config.write_text(
        NGINX_CONF.format(folder=folder, ip=upstream.ip, upstream=upstream.port, port=port)
    )
    said = install.output([str(binary), "-v"], environment=environment)
    command = [str(binary), "-p", str(folder), "-c", str(config)]
    return Launch(said.rpartition("/")[2].strip(), command, libraries)


def _vllm_router(*tuning: str) -> Callable[[Upstream, int, Path], Launch]:
    def launch(upstream: Upstream, port: int, folder: Path) -> Launch:
        del folder
        home = install.environment("vllm-router")
        command = [
            str(home / "vllm-router"), "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", upstream.url, "--prometheus-port", str(processes.free_port()),
            "--log-level", "error", *tuning,
        ]  # fmt: skip
        return Launch(install.version(home, "vllm-router"), command, {})

    return launch


def _sglang_router(upstream: Upstream, port: int, folder: Path) -> Launch:
    del folder
    home = install.environment("sglang-router")
    command = [
        str(home / "sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", upstream.url, "--prometheus-port", str(processes.free_port()), "--log-level", "error",
    ]  # fmt: skip
    return Launch(install.version(home, "sglang-router"), command, {})


LITELLM_CONF = """
model_list:
  - model_name: {model}
    litellm_params: {{model: hosted_vllm/{model}, api_base: "{url}/v1", api_key: none}}
"""


def _litellm(upstream: Upstream, port: int, folder: Path) -> Launch:
    home = install.environment("litellm")
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONF.format(model=MODEL, url=upstream.url))
    command = [
        str(home / "litellm"), "--host", "127.0.0.1", "--port", str(port),
        "--config", str(config), "--num_workers", "1",
    ]  # fmt: skip
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": KEY,  # it does not start without one
    }
    return Launch(install.version(home, "litellm"), command, environment)


def _production_stack(*_: object) -> Launch:
    raise Missing(
        "not on PyPI: the name of its package there, vllm-router, is the Rust router's (above)"
    )


OURS = "spotinference"
DIRECT = "direct"

PEERS = (
    Peer(OURS, _ours, note="keys, catalogue, metrics, usage records, continuation"),
    Peer(f"{OURS}, continuation off", _ours, model="bare"),
    Peer("nginx", _nginx, note="one worker, proxy_buffering off"),
    Peer(
        "vllm-router, tuned",
        _vllm_router("--max-concurrent-requests", "8192"),
        note="--max-concurrent-requests 8192",
    ),
    Peer("vllm-router", _vllm_router(), note="default settings"),
    Peer("sglang-router", _sglang_router, note="default settings"),
    Peer("litellm", _litellm, note="litellm[proxy], one worker"),
    Peer("production-stack router", _production_stack),
)
