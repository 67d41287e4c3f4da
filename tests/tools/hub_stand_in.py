"""A local stand-in for the Hub's HTTP API: what a push and a load need of it, kept in memory.

    with hub_stand_in(token="hf_right") as hub:
        ...                      # HF_ENDPOINT=hub.address
        hub.files("me/x")        # name -> bytes

Small files come inside the commit (NDJSON, base64); those that the preupload answer calls "lfs" go by Git LFS's batch
API and a PUT, as https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md has it.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the stand-in holds and has seen."""

    token: str
    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    fail_commits: bool = False

    def files(self, repo: str) -> dict[str, bytes]:
        """Return the files of a repository, by name."""
        return self.repositories[repo]


@contextlib.contextmanager
def hub_stand_in(token: str) -> Iterator[Hub]:
    """Serve on a free port of this machine until the block ends."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args) -> None:
        """Say nothing: what was asked for is in hub.requests."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes | dict, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
        return False

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        body = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "another hash"})
            return
        self.hub.objects[oid] = body
        self._answer(200, b"")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        body = self._body()
        if not self._allowed():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            sizes = {file["path"]: file["size"] for file in json.loads(body)["files"]}
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in sizes}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/commit/" in path:
            self._commit(path.split("/api/models/")[1].split("/commit/")[0], body)
        else:
            self._answer(404, {"error": f"no {path} here"})

    def _create(self, wanted: dict) -> None:
        repo = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        repo = repo if "/" in repo else f"me/{repo}"
        if repo in self.hub.repositories:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{repo}"})
            return
        self.hub.repositories[repo] = {}
        self.hub.private[repo] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._answer(200, {"url": f"{self.hub.address}/{repo}"})

    def _batch(self, wanted: dict) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        if self.hub.fail_commits:
            self._answer(403, {"error": "Forbidden"}, {"X-Error-Message": "You may not write here"})
            return
        files = {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repositories[repo].update(files)
        url = f"{self.hub.address}/{repo}/commit/{SHA}"
        self._answer(200, {"commitUrl": url, "commitOid": SHA, "pullRequestUrl": None})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
            return
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        files = self.hub.repositories.get(repo)
        if files is None or name not in files:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            self._answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": SHA})
            return
        content = files[name]
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "X-Linked-Size": str(len(content))})

    def _info(self, rest: str) -> None:
        repo = "/".join(rest.split("/")[:2])
        if repo not in self.hub.repositories:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in rest:
            names = self.hub.repositories[repo]
            self._answer(
                200, json.dumps([{"type": "file", "path": name, "size": 1, "oid": SHA} for name in names]).encode()
            )
        else:
            siblings = [{"rfilename": name} for name in self.hub.repositories[repo]]
            self._answer(200, {"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings, "tags": []})
