"""A local server with the Hugging Face hub's HTTP API, over a directory of repositories.

Good enough for `huggingface_hub` (model_info, tree, resolve with HEAD, GET and Range), with a log
of every request and its bytes, so that a test can prove that nothing was downloaded.

    ROOT/org/name/config.json …            one revision, "main"
    ROOT/org/name/@main/…  @v2/…           or one directory per revision

The commit of a revision is a hash of its files' names and contents: it changes when they do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

DEFAULT_REVISION = "main"
LARGE_FILE_BYTES = 1024 * 1024
"""From this size on a file is listed as stored by LFS, as the real hub does."""
READ_BLOCK = 1024 * 1024
_SENT = web.RequestKey("sent", int)


@dataclass(frozen=True, slots=True)
class RepoFile:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of one repository, as found on disk."""

    name: str
    folder: Path
    commit: str
    files: tuple[RepoFile, ...]


@dataclass(slots=True)
class HubFault:
    """What the hub does wrong: `status` for the next `times` requests whose path has `match`."""

    status: int = 500
    times: int = 1
    match: str = "/"
    body: str = '{"error": "simulated"}'
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """With a number: the file is served, but the connection is cut after so many bytes."""


class HubServer:
    """Serves until `stop`; every request is a JSON line in `log`: method, path, status, bytes."""

    def __init__(
        self, root: Path, host: str = "127.0.0.1", port: int = 0, log: Path | None = None
    ) -> None:
        self.root = root
        self.host = host
        self.port = port
        self.log = log
        self.token: str | None = None
        """When set, a request without this bearer token gets 401."""
        self.fault: HubFault | None = None
        self._digests: dict[Path, tuple[int, int, str]] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        repo = r"/{org:[\w.-]+}/{name:[\w.-]+}"
        app.router.add_get(f"/api/models{repo}", self._info)
        app.router.add_get(f"/api/models{repo}/revision/{{revision:[^/]+}}", self._info)
        app.router.add_get(f"/api/models{repo}/tree/{{revision:[^/]+}}", self._tree)
        app.router.add_get(f"{repo}/resolve/{{revision:[^/]+}}/{{path:.+}}", self._resolve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def revisions(self, repo_id: str) -> list[Revision]:
        """Every revision of the repository; empty when it does not exist."""
        org, _, name = repo_id.partition("/")
        base = self.root / org / name
        if not base.is_dir():
            return []
        named = sorted(p for p in base.iterdir() if p.is_dir() and p.name.startswith("@"))
        if not named:
            return [self._scan(DEFAULT_REVISION, base)]
        return [self._scan(p.name[1:], p) for p in named]

    def _scan(self, name: str, folder: Path) -> Revision:
        files = tuple(
            RepoFile(str(p.relative_to(folder)), p.stat().st_size, self._digest(p))
            for p in sorted(folder.rglob("*"))
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        )
        text = "".join(f"{f.path} {f.size} {f.sha256}\n" for f in files)
        return Revision(name, folder, hashlib.sha1(text.encode()).hexdigest(), files)  # noqa: S324

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file, remembered while its size and time stay the same."""
        stat = path.stat()
        known = self._digests.get(path)
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._digests[path] = (stat.st_size, stat.st_mtime_ns, digest)
        return digest

    async def _find(self, request: web.Request) -> Revision:
        match = request.match_info
        repo_id = f"{match['org']}/{match['name']}"
        revisions = await asyncio.to_thread(self.revisions, repo_id)
        wanted = match.get("revision") or DEFAULT_REVISION
        if not revisions:
            raise _error(404, "RepoNotFound", f"Repository {repo_id} not found")
        for revision in revisions:
            if wanted in {revision.name, revision.commit}:
                return revision
        raise _error(404, "RevisionNotFound", f"Invalid rev id: {wanted}")

    async def _info(self, request: web.Request) -> web.Response:
        revision = await self._find(request)
        repo_id = f"{request.match_info['org']}/{request.match_info['name']}"
        return web.json_response(
            {
                "_id": revision.commit[:24],
                "id": repo_id,
                "modelId": repo_id,
                "sha": revision.commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": f.path} for f in revision.files],
            }
        )

    async def _tree(self, request: web.Request) -> web.Response:
        revision = await self._find(request)
        entries: list[dict[str, object]] = []
        for file in revision.files:
            entry: dict[str, object] = {
                "type": "file",
                "path": file.path,
                "size": file.size,
                "oid": file.sha256[:40],
            }
            if file.size >= LARGE_FILE_BYTES:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        return web.json_response(entries)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        revision = await self._find(request)
        wanted = request.match_info["path"]
        file = next((f for f in revision.files if f.path == wanted), None)
        if file is None:
            raise _error(404, "EntryNotFound", f"{wanted} does not exist")
        headers = {
            "X-Repo-Commit": revision.commit,
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "Accept-Ranges": "bytes",
        }
        return await self._send_file(request, revision.folder / file.path, file.size, headers)

    async def _send_file(
        self, request: web.Request, path: Path, size: int, headers: dict[str, str]
    ) -> web.StreamResponse:
        """The file, or the range that was asked for."""
        start, end, status = 0, size, 200
        wanted = request.http_range
        if wanted.start is not None:
            start = wanted.start if wanted.start >= 0 else max(0, size + wanted.start)
            end = min(size, wanted.stop if wanted.stop is not None else size)
            if start >= size:
                raise web.HTTPRequestRangeNotSatisfiable(
                    headers={"Content-Range": f"bytes */{size}"}
                )
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = end - start
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        cut = self._take_cut(request)
        request[_SENT] = 0
        with path.open("rb") as stream:
            stream.seek(start)
            while start < end:
                block = stream.read(min(READ_BLOCK, end - start))
                if cut is not None and request[_SENT] + len(block) > cut:
                    await response.write(block[: cut - request[_SENT]])
                    request[_SENT] = cut
                    if request.transport is not None:
                        request.transport.close()
                    return response
                await response.write(block)
                start += len(block)
                request[_SENT] += len(block)
        return response

    def _take_cut(self, request: web.Request) -> int | None:
        fault = self.fault
        if fault is None or fault.cut_after is None or fault.times <= 0:
            return None
        if fault.match not in request.path:
            return None
        fault.times -= 1
        return fault.cut_after

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        status = 0
        try:
            response = self._refusal(request) or await handler(request)
            status = response.status
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                request[_SENT] = 0 if request.method == "HEAD" else len(response.body)
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            self._write_log(request, status)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        fault = self.fault
        if (
            fault is not None
            and fault.cut_after is None
            and fault.times > 0
            and fault.match in request.path
        ):
            fault.times -= 1
            return web.Response(
                status=fault.status,
                text=fault.body,
                content_type=fault.content_type,
                headers=fault.headers,
            )
        if self.token is not None and request.headers.get("Authorization") != (
            f"Bearer {self.token}"
        ):
            return web.json_response({"error": "Invalid credentials"}, status=401)
        return None

    def _write_log(self, request: web.Request, status: int) -> None:
        if self.log is None:
            return
        line = {
            "at": round(time.time(), 3),
            "method": request.method,
            "path": request.path,
            "status": status,
            "bytes": request.get(_SENT, 0),
        }
        with self.log.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def _error(status: int, code: str, message: str) -> web.HTTPException:
    kind = web.HTTPNotFound if status == 404 else web.HTTPBadRequest
    return kind(
        text=json.dumps({"error": message}),
        content_type="application/json",
        headers={"X-Error-Code": code, "X-Error-Message": message},
    )
