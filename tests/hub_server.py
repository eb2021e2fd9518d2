"""A small stand-in for the Hugging Face Hub on this machine, for programs with HF_ENDPOINT set to its address.

It speaks as much of the Hub's interface as fetching and pushing models needs: HEAD and GET of files, with the headers
by which huggingface_hub tells commits, contents and errors apart, and the calls that make a repository and a commit.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from typing import Any
import urllib.parse

TOKEN = "hf_test"


@dataclasses.dataclass
class Repo:
    """A repository: {revision: {file: content}}; a commit is the SHA-1 of its content."""

    revisions: dict[str, dict[str, bytes]]
    private: bool = False
    gated: bool = False
    messages: list[str] = dataclasses.field(default_factory=list)

    def commit(self, revision):
        return hashlib.sha1(repr(sorted(self.revisions[revision].items())).encode()).hexdigest()

    def files(self, revision):
        """Returns (commit, files) of a branch or commit, or None."""
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return self.commit(name), files
        return None


class Hub:
    """The state of the server: repositories, requests, and faults to show."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.damage = False  # Sends files with a byte changed.
        self.broken = False  # Answers 500.
        self.claimed_size: int | None = None  # Size that HEAD states.
        self.url = ""

    def add(self, repo, files, **fields):
        """Adds a repository whose main branch has these files."""
        self.repos[repo] = Repo({"main": {name: bytes(content) for name, content in files.items()}}, **fields)
        return self.repos[repo]

    def environment(self, home):
        """Returns environment variables for a program that uses this server, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "EQJAX_WEIGHTS": str(home / "eqjax"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "2", "NO_PROXY": "*",
        }  # fmt: skip

    def downloads(self):
        """Returns the names of the files that were sent."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET ") and "/resolve/" in line]


@contextlib.contextmanager
def serve():
    """Yields a running `Hub`."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        del format, args

    def _send(self, status, body: Any = b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status, code, message):
        self._send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _is_known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _begin(self):
        """Notes a request; returns its path, or None if the server is broken."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            self._send(500, {"error": "broken"})
            return None
        return path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._begin()
        if path is None:
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/.+", path):
            # Older versions ask whether large files have a store of their own.
            self._send(200, {"id": found[1], "xetEnabled": False})
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path)
        if not found:
            self._send(404, {"error": "no such page"})
            return
        name, revision, file = found.groups()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_known()):
            self._refuse(401 if not self._is_known() else 404, "RepoNotFound", "Repository not found")
        elif repo.gated and not self._is_known():
            self._refuse(401, "GatedRepo", "Access to this model is restricted")
        elif (snapshot := repo.files(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file not in snapshot[1]:
            self._send(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found",
                X_Repo_Commit=snapshot[0],
            )  # fmt: skip
        else:
            self._send_file(*snapshot, file)

    def _send_file(self, commit, files, file):
        content = files[file]
        # As the Hub does: SHA-256 of large files, Git's own name of others.
        is_large = file.endswith((".safetensors", ".ckpt"))
        etag = hashlib.sha256(content).hexdigest() if is_large else hashlib.sha1(content).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"'}
        if self.command == "HEAD" and self.hub.claimed_size is not None:
            headers["X_Linked_Size"] = str(self.hub.claimed_size)
        if self.hub.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, content, **headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._read_chunk, b""))
        path = self._begin()
        if path is None:
            return
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif not self._is_known():
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            self._change(found[1], found[2], found[3], body)
        else:
            self._send(404, {"error": "no such call"})

    def _read_chunk(self):
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _create(self, fields):
        name = f"{fields.get('organization') or 'owner'}/{fields['name']}"
        if name.startswith("stranger/"):
            self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.hub.repos:
            self._send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.add(name, {}, private=bool(fields.get("private")) or fields.get("visibility") == "private")
            self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _change(self, name, action, revision, body):
        repo = self.hub.repos[name]
        if action == "branch":
            is_new = revision not in repo.revisions
            repo.revisions.setdefault(revision, dict(repo.revisions["main"]))
            self._send(200 if is_new else 409, {} if is_new else {"error": "exists"})
        elif revision not in repo.revisions:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._send(200, {"files": [{"path": path, **modes} for path in files], "commitOid": repo.commit(revision)})
        else:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    repo.messages.append(line["value"]["summary"])
                elif line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    content = base64.b64decode(line["value"]["content"])
                    repo.revisions[revision][line["value"]["path"]] = content
            commit = repo.commit(revision)
            url = f"{self.hub.url}/{name}/commit/{commit}"
            self._send(200, {"success": True, "commitUrl": url, "commitOid": commit})
