"""An API server in a thread, just enough for the gateway process as it ships: tiers and one pod.

`demo` has one Ready replica, the mock; `asleep` has none, so its requests are parked. Lists,
watches without events, and Leases that are taken and forgotten.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from spotinference.api import names
from spotinference.api.keys import ApiKey, KeyFile, digest
from spotinference.api.kinds import POD, TIER, Json

KEY = "sk-spot-benchmark-3f1c0a7d9b52e8461d0f"
NAMESPACE = "default"
BOOKMARK_S = 20.0


def tier(name: str, **spec: object) -> Json:
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-11-01T00:00:00Z",
            "resourceVersion": "1",
        },
        "spec": {
            "model": {"source": "hf://org/demo"},
            "placement": {"pools": ["spot"]},
            **spec,
        },
        "status": {"phase": "Ready"},
    }


def pod(tier_name: str, ip: str, port: int) -> Json:
    container = {
        "name": names.ENGINE_CONTAINER,
        "image": "mock",
        "args": ["/cache/weights/demo"],
        "ports": [{"name": names.ENGINE_PORT_NAME, "containerPort": port}],
    }
    return {
        "metadata": {
            "name": f"{tier_name}-0",
            "namespace": NAMESPACE,
            "uid": f"uid-pod-{tier_name}",
            "labels": names.tier_labels(tier_name, names.ROLE_ENGINE),
            "resourceVersion": "1",
        },
        "spec": {"containers": [container]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@contextmanager
def api_server(
    objects: dict[str, list[Json]], folder: Path, written: set[str] | None = None
) -> Iterator[Path]:
    """Serves objects by their plural; yields the path of a kubeconfig. `written`: paths of writes."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if "watch=true" in query:
                self._watch()
                return
            items = objects.get(path.rpartition("/")[2], [])
            if "fieldSelector" in query:
                items = []
            self._json({"metadata": {"resourceVersion": "1"}, "items": items})

        def do_PATCH(self) -> None:
            if written is not None:
                written.add(self.path.partition("?")[0])
            self._json(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_DELETE(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._json({"kind": "Status", "status": "Success"})

        def _json(self, body: Json) -> None:
            raw = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def _watch(self) -> None:
            """Bookmarks only, until the end; the watcher may leave at any time."""
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.close_connection = True
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "1"}}}
            try:
                while not stop.wait(BOOKMARK_S):
                    self.wfile.write(json.dumps(bookmark).encode() + b"\n")
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield _kubeconfig(folder, server.server_address[1])
    finally:
        stop.set()
        server.shutdown()
        thread.join(timeout=5)
        server.server_close()


def _kubeconfig(folder: Path, port: int) -> Path:
    file = folder / "kubeconfig.yaml"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "stub", "user": {"token": "none"}}],
        "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        "current-context": "stub",
    }
    file.write_text(yaml.safe_dump(config))
    return file


def keys_file(folder: Path) -> Path:
    file = folder / "keys.json"
    key = ApiKey(id="benchmark", sha256=digest(KEY), namespace=NAMESPACE)
    file.write_text(KeyFile(keys=[key]).model_dump_json())
    return file


def objects(ip: str, port: int) -> dict[str, list[Json]]:
    """The cluster of the benchmark."""
    return {
        TIER.plural: [
            tier("demo"),
            tier("bare", interruption={"continuation": "off"}),
            tier("asleep", wake={"maxParked": 10_000}),
        ],
        POD.plural: [pod("demo", ip, port), pod("bare", ip, port)],
    }
