"""A loopback server that speaks as much of the Hugging Face Hub's protocol as downloading and pushing files takes."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """What the server has, and what was asked of it."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Name -> branch or commit -> files."""
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name of a repository -> status and X-Error-Code of every request for it."""
    private: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def put(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        commit = commit_of(files)
        self.repositories.setdefault(repository, {}).update({revision: files, commit: files})
        return commit


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, **content: object) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if not (match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path)):
                return self.answer(404)
            repository, revision, name = match.groups()
            if repository in hub.answers:
                status, code = hub.answers[repository]
                return self.answer(status, X_Error_Code=code)
            if repository not in hub.repositories:
                return self.answer(401, X_Error_Code="RepoNotFound")
            files = hub.repositories[repository].get(revision)
            if files is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            commit = commit_of(files)
            if name not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = hashlib.sha1(files[name]).hexdigest()
            return self.answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != "Bearer hf_writer":
                return self.answer(401 if "Authorization" not in self.headers else 403)
            if self.path == "/api/validate-yaml":
                return self.answer_json(errors=[], warnings=[])
            if self.path == "/api/repos/create":
                return self.create(json.loads(body))
            repository = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                paths = [entry["path"] for entry in json.loads(body)["files"]]
                return self.answer_json(
                    files=[{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                )
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            hub.put(repository, {entry["path"]: base64.b64decode(entry["content"]) for entry in lines[1:]})
            url = f"{hub.endpoint}/{repository}/commit/{commit_of(hub.repositories[repository]['main'])}"
            return self.answer_json(commitUrl=url, commitOid=url.split("/")[-1])

        def create(self, content: dict) -> None:
            repository = f"{content.get('organization')}/{content['name']}"
            known = repository in hub.repositories
            hub.repositories.setdefault(repository, {})
            if (content.get("private") or content.get("visibility") == "private") and not known:
                hub.private.append(repository)
            body = json.dumps({"url": f"{hub.endpoint}/{repository}"}).encode()
            self.answer(409 if known else 200, body, Content_Type="application/json")

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class Server:
    """Serves a `Hub` on a free port while the context lasts."""

    def __enter__(self) -> Hub:
        hub = Hub()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
        hub.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return hub

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
