"""A stand-in for the Hub on this machine: repositories, large files by their hash, commits, and downloads. It takes what huggingface_hub sends."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """What lies on it: `repos` by name with their files, `large` files by hash, and `sent`, how often each of these was sent whole.

    While `stalled` is set, a second large file does not arrive, and `reached` says that one is waiting.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.begun, self.lock = 0, threading.Lock()
        self.stalled, self.reached, self.released = threading.Event(), threading.Event(), threading.Event()

    def environment(self, home: str) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_nobody", "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
            known = name in self.server.repos
            self.server.repos.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "name": name}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            bad = "base_model: /" in json.loads(body)["content"]  # as the Hub, which takes names of its own alone
            self._json({"errors": [{"message": "base_model is no model"}] if bad else [], "warnings": []}, 400 if bad else 200)
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._large(one) for one in json.loads(body)["objects"]]})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
            self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self._json({}, 200 if path == "/verify" else 404)

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rsplit("/", 1)[1]
        with self.server.lock:
            self.server.begun += 1
            first = self.server.begun == 1
        if self.server.stalled.is_set() and not first:
            self.server.reached.set()
            self.server.released.wait(60)
            self.close_connection = True
            return  # it never arrives
        self.server.large[oid] = body
        self.server.sent.append(oid)
        self._json({})

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        self._file(send=True)

    def _large(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid = asked["oid"]
        actions = {"upload": {"href": f"{self.server.url}/lfs/{oid}"}, "verify": {"href": f"{self.server.url}/verify"}}
        return {**asked, **({} if oid in self.server.large else {"actions": actions})}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[repo][value["path"]] = self.server.large[value["oid"]]

    def _file(self, send: bool) -> None:
        if self.path.startswith("/api/models/"):
            name = self.path.removeprefix("/api/models/")
            self._json({"id": name, "private": self.server.private[name], "sha": COMMIT, "downloads": 0, "likes": 0, "tags": []})
            return
        repo, _, rest = self.path.partition("?")[0].strip("/").partition("/resolve/")
        content = self.server.repos.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            self._json({}, 404, {"X-Error-Code": "RepoNotFound" if repo not in self.server.repos else "EntryNotFound"})
            return
        self.send_response(200)
        for name, value in {"ETag": f'"{hash(content)}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, told in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, told)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
