"""
A Hub on loopback that speaks the protocol of huggingface.co as far as publishing and loading models needs it, so that
the real `huggingface_hub` and `transformers` clients run against it through HF_ENDPOINT.

Spoken: whoami, validate-yaml, create repo, preupload, LFS batch (basic and multipart) with verify, commit with parent,
tags, refs, model info, tree, paths-info, resolve with Range and the redirect of large files. Not spoken: Xet (clients
set HF_HUB_DISABLE_XET=1), pull requests and datasets. Everything lies in memory and is checked as the Hub does:
tokens, parent commits, paths, and that a committed large file has arrived with the hash it claims.

    with LocalHub({"hf_good": "tester"}) as hub:
        HfApi(endpoint=hub.url, token="hf_good").create_repo("tester/model")
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = re.compile(r"\.(safetensors|bin|onnx|data|pt2|parquet|npy)$")


def git_hash(content: bytes) -> str:
    """SHA-1 that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class File:
    """A file of a commit: its content, or SHA-256 and size of a large object."""

    content: bytes = b""
    sha256: str | None = None
    large_size: int = 0

    @property
    def size(self) -> int:
        return len(self.content) if self.sha256 is None else self.large_size

    @property
    def oid(self) -> str:
        return git_hash(self.content) if self.sha256 is None else git_hash(self.pointer)

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, File]


@dataclass
class Repository:
    """Commits oldest first; refs are branches and tags by name."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, title: str, files: dict[str, File]) -> Commit:
        listing = "".join(f"{path}:{file.oid}\n" for path, file in sorted(files.items()))
        parent = self.commits[-1].oid if self.commits else ""
        commit = Commit(hashlib.sha1(f"{len(self.commits)}{parent}{title}{listing}".encode()).hexdigest(), title, files)
        self.commits.append(commit)
        self.branches["main"] = commit.oid
        return commit

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.oid == oid), None)


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.message, self.code, self.body = status, message, code, body


class LocalHub:
    """
    The server, on a free port, until the `with` block ends.

    tokens: token -> user name. part_size: bytes above which large files are sent in parts.
    requests: what clients asked for, "METHOD /path". `before(method, path)` is called with each request and may raise
    Refusal or ConnectionError: a failing network.
    """

    def __init__(self, tokens: dict[str, str], part_size: int = 8 << 20):
        self.tokens, self.part_size = tokens, part_size
        self.organisations = ["genomes"]
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.before = lambda method, path: None
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.storage = f"http://localhost:{port}/storage"  # another host, as the real Hub's: clients tell them apart

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    # ---- one method a route: (handler, the groups of the pattern) -> JSON

    def whoami(self, request):
        return {
            "type": "user",
            "name": request.user(),
            "orgs": [{"type": "org", "name": o} for o in self.organisations],
        }

    def validate_yaml(self, request):
        content = request.json()["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        try:
            card = yaml.safe_load(match.group(1)) if match else {}
        except yaml.YAMLError as error:
            raise Refusal(400, "bad yaml", errors=[{"message": str(error)}], warnings=[]) from None
        missing = [] if card.get("license") else [{"message": "license is missing"}]
        return {"errors": [], "warnings": missing}

    def create(self, request):
        body, user = request.json(), request.user()
        name = f"{body.get('organization') or user}/{body['name']}"
        if name.split("/")[0] not in (user, *self.organisations):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        private = body.get("private", False) or body.get("visibility") == "private"
        repository = self.repositories[name] = Repository(private)
        files = {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
        if body.get("type") == "space":  # the Hub writes a card, too
            files["README.md"] = File(f"---\ntitle: {body['name']}\nsdk: {body['sdk']}\n---\n".encode())
        repository.add("initial commit", files)
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def preupload(self, request, name, revision):
        files = self.commit_of(request, name, revision, write=True).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if LARGE.search(file["path"]) or file["size"] > 10 << 20 else "regular",
                    "shouldIgnore": False,
                    "oid": (files[file["path"]].sha256 or files[file["path"]].oid) if file["path"] in files else None,
                }
                for file in request.json()["files"]
            ]
        }

    def lfs_batch(self, request, name):
        self.repository_of(request, name, write=True)
        answer = []
        for wanted in request.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.objects:
                upload = {"href": f"{self.storage}/{oid}"}
                if size > self.part_size:
                    count = -(-size // self.part_size)
                    parts = {str(i + 1): f"{self.storage}/{oid}/{i + 1}" for i in range(count)}
                    upload = {
                        "href": f"{self.url}/complete/{oid}/{count}",
                        "header": {"chunk_size": str(self.part_size), **parts},
                    }
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/verify/{oid}"}}
            answer.append(entry)
        return {"transfer": "basic", "objects": answer}

    def put_object(self, request, oid):
        self.store(oid, request.body())
        return {}

    def put_part(self, request, oid, number):
        self.parts[oid, int(number)] = request.body()
        request.extra["ETag"] = f'"{number}-{oid[:8]}"'
        return {}

    def complete(self, request, oid, count):
        parts = [part["partNumber"] for part in request.json()["parts"]]
        if parts != list(range(1, int(count) + 1)) or any((oid, number) not in self.parts for number in parts):
            raise Refusal(400, f"parts {parts} of {count}")
        self.store(oid, b"".join(self.parts[oid, number] for number in parts))
        return {}

    def store(self, oid: str, content: bytes):
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"object {oid} arrived with another content")
        self.objects[oid] = content

    def verify(self, request, oid):
        if len(self.objects.get(oid, b"")) != request.json()["size"]:
            raise Refusal(404, f"object {oid} has not arrived")
        return {}

    def commit(self, request, name, revision):
        repository = self.repository_of(request, name, write=True)
        lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
        header, operations = lines[0]["value"], lines[1:]
        with self.lock:
            head = self.commit_of(request, name, revision)
            if header.get("parentCommit") not in (None, head.oid):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for operation in operations:
                self.apply(operation["key"], operation["value"], files)
            commit = repository.add(header["summary"], files)
        return {"commitUrl": f"{self.url}/{name}/commit/{commit.oid}", "commitOid": commit.oid, "success": True}

    def apply(self, key: str, value: dict, files: dict[str, File]):
        path = value["path"]
        if ".." in path.split("/") or path.startswith("/") or "\\" in path:
            raise Refusal(400, f"invalid path {path}")
        if key == "file":
            content = base64.b64decode(value["content"])
            files[path] = File(content)
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise Refusal(400, f"Your push was rejected: LFS object {value['oid']} of {path} is missing")
            files[path] = File(sha256=value["oid"], large_size=len(self.objects[value["oid"]]))
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        else:
            raise Refusal(400, f"operation {key} is not spoken here")

    def tag(self, request, name, revision):
        repository, commit = self.repository_of(request, name, write=True), self.commit_of(request, name, revision)
        tag = request.json()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag {tag} exists")
        repository.tags[tag] = commit.oid
        return {}

    def refs(self, request, name):
        repository = self.repository_of(request, name)

        def listed(kind, refs):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return {
            "branches": listed("heads", repository.branches),
            "tags": listed("tags", repository.tags),
            "converts": [],
        }

    def info(self, request, name, revision="main"):
        repository, commit = self.repository_of(request, name), self.commit_of(request, name, revision)
        siblings = [{"rfilename": path, "size": file.size, "blobId": file.oid} for path, file in commit.files.items()]
        names = {"id": name, "modelId": name, "author": name.split("/")[0]}
        return {**names, "sha": commit.oid, "private": repository.private, "tags": [], "siblings": siblings}

    def tree(self, request, name, revision, path=""):
        prefix = f"{path.strip('/')}/" if path else ""
        found = [(p, f) for p, f in self.commit_of(request, name, revision).files.items() if p.startswith(prefix)]
        if path and not found:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        folders = {str(parent) for p, _ in found for parent in PurePosixPath(p).parents} - {".", "/"}
        inside = [folder for folder in sorted(folders) if folder.startswith(prefix)]
        return [
            *({"type": "directory", "path": folder, "size": 0, "oid": git_hash(folder.encode())} for folder in inside),
            *(self.listed(p, f) for p, f in found),
        ]

    def paths_info(self, request, name, revision):
        files = self.commit_of(request, name, revision).files
        wanted = parse_qs(request.body().decode())["paths"]
        return [self.listed(path, files[path]) for path in wanted if path in files]

    @staticmethod
    def listed(path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        return entry

    def commits(self, request, name, revision):
        self.commit_of(request, name, revision)
        found = [
            {"id": c.oid, "title": c.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            for c in reversed(self.repositories[name].commits)
        ]
        return found

    def resolve(self, request, name, revision, path):
        commit = self.commit_of(request, name, revision)
        request.extra["X-Repo-Commit"] = commit.oid
        if path not in commit.files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        file = commit.files[path]
        if file.sha256 is None:
            request.extra["ETag"] = f'"{file.oid}"'
            return file.content
        request.extra |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        request.extra["Location"] = f"{self.storage}/{file.sha256}"
        raise Refusal(302, "large file")

    def get_object(self, request, oid):
        if oid not in self.objects:
            raise Refusal(404, f"object {oid} does not exist")
        request.extra["ETag"] = f'"{oid}"'
        return self.objects[oid]

    # ---- rights and revisions

    def repository_of(self, request, name: str, write: bool = False) -> Repository:
        user = request.user(required=write)
        repository = self.repositories.get(name)
        if repository is None or (repository.private and user is None):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and name.split("/")[0] not in (user, *self.organisations):
            raise Refusal(403, f"{user} may not write to {name}")
        return repository

    def commit_of(self, request, name: str, revision: str, write: bool = False) -> Commit:
        commit = self.repository_of(request, name, write).at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


NAME = r"([\w.-]+/[\w.-]+?)"
ROUTES = [
    (method, re.compile(f"{pattern}$"), handler)
    for method, pattern, handler in (
        ("GET", "/api/whoami-v2", LocalHub.whoami),
        ("POST", "/api/validate-yaml", LocalHub.validate_yaml),
        ("POST", "/api/repos/create", LocalHub.create),
        ("POST", f"/api/(?:models|spaces)/{NAME}/preupload/([^/]+)", LocalHub.preupload),
        ("POST", rf"/(?:spaces/)?{NAME}\.git/info/lfs/objects/batch", LocalHub.lfs_batch),
        ("PUT", "/storage/([0-9a-f]{64})", LocalHub.put_object),
        ("PUT", "/storage/([0-9a-f]{64})/([0-9]+)", LocalHub.put_part),
        ("POST", "/complete/([0-9a-f]{64})/([0-9]+)", LocalHub.complete),
        ("POST", "/verify/([0-9a-f]{64})", LocalHub.verify),
        ("POST", f"/api/(?:models|spaces)/{NAME}/commit/([^/]+)", LocalHub.commit),
        ("POST", f"/api/(?:models|spaces)/{NAME}/tag/([^/]+)", LocalHub.tag),
        ("GET", f"/api/(?:models|spaces)/{NAME}/refs", LocalHub.refs),
        ("GET", f"/api/(?:models|spaces)/{NAME}/commits/([^/]+)", LocalHub.commits),
        ("GET", f"/api/(?:models|spaces)/{NAME}/tree/([^/]+)(?:/(.*))?", LocalHub.tree),
        ("POST", f"/api/(?:models|spaces)/{NAME}/paths-info/([^/]+)", LocalHub.paths_info),
        ("GET", f"/api/(?:models|spaces)/{NAME}/revision/([^/]+)", LocalHub.info),
        ("GET", f"/api/(?:models|spaces)/{NAME}", LocalHub.info),
        ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", LocalHub.resolve),
        ("GET", "/storage/([0-9a-f]{64})", LocalHub.get_object),
    )
]


class Handler(BaseHTTPRequestHandler):
    """HTTP around LocalHub: bodies with a length or in chunks, ranges, HEAD, refusals."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; together they wait 40 ms for each other
    hub: LocalHub

    def body(self) -> bytes:
        if self.content is None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self.content = b"".join(chunks)
            else:
                self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.content

    def json(self) -> dict:
        return json.loads(self.body())

    def user(self, required: bool = True) -> str | None:
        """Name behind the token; 401 for a wrong one, and for none where one is needed."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if required and not token:
            raise Refusal(401, "Invalid username or password.")
        return self.hub.tokens.get(token)

    def answer(self):
        self.content, self.extra = None, {}
        path = unquote(urlsplit(self.path).path)
        method = "GET" if self.command == "HEAD" else self.command
        self.hub.requests.append(f"{self.command} {path}")
        try:
            self.hub.before(self.command, path)
            self.body()
            for route_method, pattern, function in ROUTES:
                match = pattern.match(urlsplit(self.path).path) if route_method == method else None
                if match:
                    groups = [unquote(group) for group in match.groups() if group is not None]
                    return self.send(200, function(self.hub, self, *groups))
            raise Refusal(404, f"{path} is not spoken here", "EntryNotFound")
        except Refusal as refusal:
            self.body()
            self.extra["X-Error-Message"] = refusal.message
            if refusal.code:
                self.extra["X-Error-Code"] = refusal.code
            self.send(refusal.status, {"error": refusal.message, **refusal.body})
        except ConnectionError:
            self.close_connection = True
            self.connection.close()

    def send(self, status: int, content: bytes | dict | list):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200 and isinstance(content, bytes):
            start, total = int(wanted.group(1)), len(body)
            body = body[start : int(wanted.group(2) or total - 1) + 1]
            self.extra["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{total}"
            status = 206
        self.send_response(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if content is body else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *arguments):
        pass
