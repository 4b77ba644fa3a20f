"""A Hub on the loopback interface: the part of its HTTP protocol that push, resume and load use, with faults.

Repositories live in memory. As on the real Hub, large files are on another host ("localhost", not "127.0.0.1"), so
that the tests notice a token that follows a redirect.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

LARGE = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.png")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode()
REPO = r"/(?:api/models/)?(?P<repo>[^/]+/[^/]+?)"
MAIN = "main"


@dataclass(frozen=True)
class Stored:
    """A file of a commit. Its oid is git's; for a large file, the oid of its pointer."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        text = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Commit:
    title: str
    parent: str | None
    files: dict[str, Stored]

    @property
    def oid(self) -> str:
        tree = sorted((path, file.oid) for path, file in self.files.items())
        return hashlib.sha1(repr((self.title, self.parent, tree)).encode()).hexdigest()


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit.oid

    def titles(self, revision: str = MAIN) -> list[str]:
        """The titles of the commits, newest first."""
        return [self.commits[oid].title for oid in self.history(revision)]

    def history(self, revision: str = MAIN) -> list[str]:
        oids, oid = [], self.oid_of(revision)
        while oid is not None:
            oids.append(oid)
            oid = self.commits[oid].parent
        return oids

    def oid_of(self, revision: str) -> str:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision: str = MAIN) -> dict[str, Stored]:
        return self.commits[self.oid_of(revision)].files


@dataclass
class Fault:
    """What goes wrong with the next requests that match a pattern such as "PUT /large/"."""

    pattern: str
    status: int = 0  # of the response
    body: bytes = b'{"error": "Internal Error - We are working hard to fix this as soon as possible!"}'
    cut_after: int | None = None  # close the connection after this many bytes of the file, in either direction
    reset: bool = False  # close it with a TCP reset
    unanswered: bool = False  # handle the request, but close the connection without a response
    times: int = 1
    happened: int = 0


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        self.status, self.message, self.code, self.body = status, message, code, {"error": message, **body}
        super().__init__(message)


@dataclass
class Request:
    method: str
    path: str
    status: int
    authorized: bool  # a token was sent
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


class Hub(ThreadingHTTPServer):
    """The server and its contents.

    Args:
        tokens: user names by token; a token that ends in `_read` cannot write.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.lock = threading.RLock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"
        self.reset()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def reset(self) -> None:
        with self.lock:
            self.repos: dict[str, Repo] = {}
            self.large: dict[str, bytes] = {}
            self.parts: dict[str, dict[int, bytes]] = {}
            self.faults: list[Fault] = []
            self.requests: list[Request] = []
            self.large_patterns = LARGE
            # Xet's storage: its address, and by sha256 the name and the content of each file expected there.
            self.xet_address: str | None = None
            self.xet: dict[str, tuple[str, bytes]] = {}
            self.part_size: int | None = None  # of a large file's upload in parts
            self.page_size = 5  # of a listing; the Hub's is 1000
            self.errors: list[str] = []

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that disconnects is no error of the server."""

    def fails(self, pattern: str, status: int = 0, **fault: Any) -> Fault:
        """Make the next request that matches a pattern fail."""
        self.faults.append(Fault(pattern, status, **fault))
        return self.faults[-1]

    def asked(self, pattern: str) -> list[Request]:
        """The requests that match a pattern."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    def everything(self) -> Iterable[tuple[str, bytes]]:
        """All content that was ever sent to the server, with its location."""
        for oid, content in self.large.items():
            yield f"large file {oid}", content
        for name, repo in self.repos.items():
            yield f"{name}, its names", repr((name, repo.branches, repo.tags)).encode()
            for oid, commit in repo.commits.items():
                yield f"{name}@{oid[:7]}, its title", commit.title.encode()
                for path, file in commit.files.items():
                    yield f"{name}@{oid[:7]}/{path}", file.content
        for request in self.requests:  # proxies log addresses
            yield "an address", request.path.encode()


Route = tuple[str, re.Pattern[str], str, bool]
ROUTES: list[Route] = []


def route(method: str, pattern: str, writes: bool = False) -> Callable:
    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern + r"(?:\?.*)?"), function.__name__, writes))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    # ---- a request -----------------------------------------------------------------------------------------------

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def answer(self) -> None:
        line = f"{self.command} {self.path}"
        self.fault = self._next_fault(line)
        if self.fault is not None and self.fault.cut_after is not None and self.command in ("PUT", "POST"):
            self.rfile.read(self.fault.cut_after)
            self._cut()
            return
        self.body = self._read_body()
        self.url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(self.url.query))
        try:
            if self.fault is not None and self.fault.status:
                self._send(self.fault.status, self.fault.body, {"X-Request-Id": "Root=1-test"})
            else:
                self._dispatch()
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message.splitlines()[0]}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            self._json(refusal.body, refusal.status, headers)
        except ConnectionError:  # the client has disconnected
            raise
        except Exception as error:
            self.server.errors.append(f"{line}: {error!r}")
            self._json({"error": "a bug in the test server"}, 501)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _next_fault(self, line: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.happened < fault.times and re.search(fault.pattern, line):
                    fault.happened += 1
                    return fault
        return None

    def _dispatch(self) -> None:
        for method, pattern, name, writes in ROUTES:
            match = pattern.fullmatch(self.path)
            if match and (method == self.command or (method == "GET" and self.command == "HEAD")):
                values = {key: urllib.parse.unquote(value) for key, value in match.groupdict(default="").items()}
                with self.server.lock:
                    if "repo" in values:
                        values["repo"] = self._repo(values["repo"], writes)
                    getattr(self, name)(**values)
                return
        self.server.errors.append(f"{self.command} {self.path}: not implemented in the test server")
        raise Refusal(501, "unknown to the test server")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _cut(self) -> None:
        if self.fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        self._note(0)

    def _note(self, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        authorized = "authorization" in headers
        self.server.requests.append(Request(self.command, self.path, status, authorized, headers))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.fault is not None and self.fault.unanswered:
            self._cut()
            return
        self._note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = None if self.fault is None else self.fault.cut_after
        self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self._cut()

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    # ---- users ---------------------------------------------------------------------------------------------------

    def _user(self, writes: bool = False) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if writes and not token:
            raise Refusal(401, "Invalid username or password.")
        if writes and token.endswith("_read"):
            raise Refusal(403, "you must use a write token to upload to a repository.")
        return self.server.tokens.get(token)

    def _repo(self, name: str, writes: bool) -> Repo:
        user = self._user(writes)
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and user != name.split("/")[0]):  # do not reveal that it exists
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if writes and user != name.split("/")[0]:
            raise Refusal(403, "You don't have the rights to write to this repository")
        return repo

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        if (user := self._user()) is None:
            raise Refusal(401, "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    # ---- repositories --------------------------------------------------------------------------------------------

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        user, wanted = self._user(writes=True), json.loads(self.body)
        if (wanted.get("organization") or user) != user:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{wanted}"')
        name = f"{user}/{wanted['name']}"
        url = f"{self.server.endpoint}/{name}"
        if name in self.server.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        repo = self.server.repos[name] = Repo(
            name, wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        repo.add(MAIN, Commit("initial commit", None, {".gitattributes": Stored(GITATTRIBUTES, large=False)}))
        self._json({"url": url, "name": name, "id": name, "private": repo.private})

    @route("GET", r"/api/models/(?P<repo>[^/]+/[^/?]+)(?:/revision/(?P<revision>[^/?]+))?")
    def model_info(self, repo: Repo, revision: str) -> None:
        oid = repo.oid_of(revision or MAIN)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid].files)]
        about = {"_id": oid[:24], "id": repo.name, "modelId": repo.name, "sha": oid, "private": repo.private}
        self._json({**about, "tags": [], "siblings": siblings, "createdAt": "2026-01-01T00:00:00.000Z"})

    @route("GET", "/api/models/[^/?]+")
    def without_owner(self) -> None:
        self._user()
        raise Refusal(404, "Repository not found", "RepoNotFound")

    @route("GET", REPO + "/tree/(?P<revision>[^/?]+)(?:/(?P<folder>[^?]+))?")
    def tree(self, repo: Repo, revision: str, folder: str) -> None:
        entries: dict[str, dict] = {}
        for path, file in sorted(repo.files(revision).items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            inside = path[len(folder) + 1 if folder else 0 :]
            if "/" in inside:
                parent = path[: len(path) - len(inside)] + inside.split("/")[0]
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
                if self.query.get("recursive", "").lower() != "true":
                    continue
            entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
            if file.large:
                entries[path]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        start = int(self.query.get("cursor", 0))
        page, more = list(entries.values())[start:][: self.server.page_size], start + self.server.page_size
        query = urllib.parse.urlencode({**self.query, "cursor": more})
        link = {"Link": f'<{self.server.endpoint}{self.url.path}?{query}>; rel="next"'} if more < len(entries) else {}
        self._json(page, headers=link)

    @route("GET", REPO + "/refs")
    def refs(self, repo: Repo) -> None:
        def listed(kind: str, names: dict[str, str]) -> list[dict]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

        self._json({"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})

    @route("GET", REPO + "/commits/(?P<revision>[^/?]+)")
    def commits(self, repo: Repo, revision: str) -> None:
        about = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "message": ""}
        self._json([{"id": oid, "title": repo.commits[oid].title, **about} for oid in repo.history(revision)])

    @route("POST", REPO + "/(?P<kind>branch|tag)/(?P<name>[^/?]+)", writes=True)
    def mark(self, repo: Repo, kind: str, name: str) -> None:
        wanted = json.loads(self.body) if self.body else {}
        names = repo.branches if kind == "branch" else repo.tags
        start = wanted.get("startingPoint") or MAIN
        if kind == "tag":
            start, name = name, wanted["tag"]
        if name in names:
            raise Refusal(409, f"Reference already exists: {name}")
        names[name] = repo.oid_of(start)
        self._json({})

    # ---- a push --------------------------------------------------------------------------------------------------

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        self._user()
        errors, warnings = card_errors(json.loads(self.body)["content"])
        found = {
            name: [{"message": text} for text in texts] for name, texts in (("errors", errors), ("warnings", warnings))
        }
        self._json(found, 400 if errors else 200)

    @route("POST", REPO + "/preupload/(?P<revision>[^/?]+)", writes=True)
    def preupload(self, repo: Repo, revision: str) -> None:
        there, answers = repo.files(revision), []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if self._is_large(file["path"]) or file["size"] > 10_000_000 else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                answer["oid"] = there[file["path"]].etag
            answers.append(answer)
        self._json({"files": answers})

    def _is_large(self, path: str) -> bool:
        return any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in self.server.large_patterns)

    @route("POST", REPO + r"\.git/info/lfs/objects/batch", writes=True)
    def batch(self, repo: Repo) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.large:
                verify = {"href": f"{self.server.endpoint}/api/verify/{repo.name}"}
                upload: dict[str, Any] = {"href": f"{self.server.storage}/large/{oid}"}
                part_size = self.server.part_size
                if part_size is not None and size > part_size:
                    self.server.parts[oid] = {}
                    count = -(-size // part_size)
                    parts = {f"{n:05}": f"{self.server.storage}/large/{oid}/{n}" for n in range(1, count + 1)}
                    upload["href"] = f"{self.server.endpoint}/api/complete/{oid}"
                    upload["header"] = {"chunk_size": str(part_size), **parts}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    @route("PUT", "/large/(?P<oid>[0-9a-f]{64})(?:/(?P<part>[0-9]+))?")
    def put(self, oid: str, part: str) -> None:
        if part:
            self.server.parts[oid][int(part)] = self.body
        else:
            self._keep(oid, self.body)
        self._send(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    @route("POST", "/api/complete/(?P<oid>[0-9a-f]{64})")
    def complete(self, oid: str) -> None:
        parts = self.server.parts.pop(oid)
        sent = [(part["partNumber"], part["etag"].strip('"')) for part in json.loads(self.body)["parts"]]
        if sent != [(number, hashlib.md5(content).hexdigest()) for number, content in sorted(parts.items())]:
            raise Refusal(400, "One or more of the specified parts could not be found.")
        self._keep(oid, b"".join(content for _, content in sorted(parts.items())))
        self._json({})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        self.server.large[oid] = content

    @route("POST", "/api/verify" + REPO, writes=True)
    def verify(self, repo: Repo) -> None:
        wanted = json.loads(self.body)
        if len(self.server.large.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "the object is not there")
        self._json({})

    @route("POST", REPO + "/commit/(?P<revision>[^/?]+)", writes=True)
    def commit(self, repo: Repo, revision: str) -> None:
        if revision not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, parent = lines[0]["value"], repo.branches[revision]
        if header.get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files(revision))
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                if self._is_large(path):
                    raise Refusal(400, f"{path} is to be pushed as a large file")
                files[path] = Stored(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                _, content = self.server.xet.get(value["oid"], ("", self.server.large.get(value["oid"])))
                if content is None:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Stored(content, large=True)
            elif line["key"] == "deletedFile":
                del files[path]
            else:
                raise Refusal(400, f"unknown operation {line['key']}")
        if (card := files.get("README.md")) is not None and (errors := card_errors(card.content.decode())[0]):
            raise Refusal(400, "; ".join(errors))
        oid = repo.add(revision, Commit(header["summary"], parent, files))
        url = f"{self.server.endpoint}/{repo.name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # ---- a download ----------------------------------------------------------------------------------------------

    @route("GET", REPO + "/resolve/(?P<revision>[^/?]+)/(?P<path>[^?]+)")
    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        oid = repo.oid_of(revision)
        file = repo.commits[oid].files.get(path)
        headers = {"X-Repo-Commit": oid}
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, b"Entry not found", headers)
        elif file.large:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            if file.sha256 in self.server.xet:
                headers["X-Xet-Hash"] = self.server.xet[file.sha256][0]
                headers["X-Xet-Refresh-Route"] = f"{self.server.endpoint}/api/models/{repo.name}/xet-read-token/{oid}"
            self._send(302, b"", headers | {"Location": f"{self.server.storage}/large/{file.sha256}"})
        else:
            self._content(file.content, headers | {"ETag": f'"{file.etag}"'})

    @route("GET", REPO + "/xet-read-token/(?P<revision>[^/?]+)")
    @route("GET", REPO + "/xet-write-token/(?P<revision>[^/?]+)", writes=True)
    def xet_token(self, repo: Repo, revision: str) -> None:
        address, ends = self.server.xet_address, int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "short-lived", "X-Xet-Token-Expiration": str(ends)}
        self._json({"casUrl": address, "accessToken": "short-lived", "exp": ends}, headers=headers)

    @route("GET", "/large/(?P<oid>[0-9a-f]{64})")
    def get(self, oid: str) -> None:
        self._content(self.server.large[oid], {"ETag": f'"{hashlib.md5(oid.encode()).hexdigest()}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers)
        else:
            self._send(200, content, headers)


def card_errors(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a model card's metadata, as the Hub reports them."""
    found = re.match(r"---[ \t]*\r?\n(.*?\n)---[ \t]*(?:\r?\n|$)", content, re.DOTALL)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"YAML is invalid: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be an object"], []
    errors = []
    for name in ("tags", "datasets", "metrics", "language", "base_model"):
        value = data.get(name, [])
        if not (isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))):
            errors.append(f'"{name}" must be a string or a list of strings')
    for model in data.get("model-index") or []:
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model.get("results"), list):
            errors.append('"model-index[0]" needs a name and a list of results')
            continue
        for number, result in enumerate(model["results"]):
            for group, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
                part = result.get(group)
                if not isinstance(part, dict) or not all(isinstance(part.get(key), str) for key in keys):
                    errors.append(f'"model-index[0].results[{number}].{group}" needs {" and ".join(keys)}')
            metrics = result.get("metrics")
            if not metrics or not all("type" in metric and "value" in metric for metric in metrics):
                errors.append(f'"model-index[0].results[{number}].metrics" need a type and a value')
    return errors, []
