"""A small Hub on loopback: the routes that huggingface_hub calls for models, with commits, tags and large files.

It keeps everything in memory and notes every request. `fail` makes the next requests that match go wrong: an HTTP
status, a connection dropped before the answer, only half of a body sent or read, an answer that is lost on the way, or
one that is something else than the route gives.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

STRANGE = {"strange": b"[1]", "html": b"<html>please log in to this network</html>"}
TOKEN, SIGNATURE = "hf_right", "S3CRETSIGNATURE"
NEVER_LARGE = re.compile(r".*\.(json|md|html|txt|jinja|gitattributes)$")


@dataclass
class Commit:
    """Files by path: bytes, or the sha256 of a large file."""

    files: dict
    parent: str | None
    title: str


@dataclass
class Repo:
    private: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    pulls: dict = field(default_factory=dict)
    lfs: dict = field(default_factory=dict)  # sha256 -> bytes

    def add(self, branch, files, title):
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{len(self.commits)} {title} {parent}".encode()).hexdigest()
        self.commits[oid] = Commit(files, parent, title)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision):
        refs = {**self.branches, **self.tags, **self.pulls}
        return refs.get(revision) or (revision if revision in self.commits else None)

    def history(self, oid):
        while oid is not None:
            yield oid
            oid = self.commits[oid].parent

    def drop_unreachable(self):
        heads = [*self.branches.values(), *self.tags.values(), *self.pulls.values()]
        kept = {oid for head in heads for oid in self.history(head)}
        self.commits = {oid: commit for oid, commit in self.commits.items() if oid in kept}


class Hub:
    """The state, and what is to go wrong."""

    def __init__(self, *, keeps_unreachable=False):
        self.repos, self.requests, self.bodies, self.faults = {}, [], [], []
        self.keeps_unreachable = keeps_unreachable  # commits that no branch or tag holds are still answered for
        self.url = ""
        self.lock = threading.RLock()

    def fail(self, pattern, how, times=1):
        """The next ``times`` requests like ``PUT /lfs`` get a status, drop, hang, half, lost, or one of `STRANGE`."""
        self.faults.append([re.compile(pattern), how, times])

    def fault(self, method, path):
        for fault in self.faults:
            if fault[2] > 0 and fault[0].search(f"{method} {path}"):
                fault[2] -= 1
                return fault[1]
        return None

    def asked(self, pattern):
        """Requests that match, as ``METHOD /path``."""
        return [line for line in self.requests if re.search(pattern, line)]

    def routes_asked(self):
        """Patterns for `fail`: one for each route that was called."""
        found = {}
        for line in self.requests:
            method, path = line.split(" ", 1)
            for known, pattern, _ in ROUTES:
                if known == ("GET" if method == "HEAD" else method) and pattern.match(path):
                    found.setdefault(f"^{method} {pattern.pattern}", None)
                    break
        return [*found]

    def pushed(self):
        """All bytes that any repository holds, and all that were sent to it."""
        for repo in self.repos.values():
            yield from repo.lfs.values()
            for commit in repo.commits.values():
                yield from (content for content in commit.files.values() if isinstance(content, bytes))
                yield from (path.encode() for path in commit.files)
        yield from self.bodies


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Wrong(Exception):
    """An answer that is no success."""

    def __init__(self, status, code=None, message=None):
        super().__init__(status)
        self.status, self.headers = status, {}
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


ROUTES = []


def route(method, pattern):
    def note(function):
        ROUTES.append((method, re.compile(f"{pattern}$"), function))
        return function

    return note


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for the client to acknowledge the headers

    def log_message(self, *_):
        pass

    def answer_any(self):
        hub = self.server.hub
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        hub.requests.append(f"{self.command} {split.path}")
        how = hub.fault(self.command, split.path)
        self.half, self.lost, self.strange = how == "half", how == "lost", STRANGE.get(how)
        if how == "hang":
            threading.Event().wait(2)
        if how in ("drop", "hang"):
            self.close_connection = True
            return self.connection.close()
        if self.half and self.command in ("PUT", "POST"):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return self.connection.close()
        self.body = self.read_body()
        hub.bodies.append(self.body)
        try:
            if isinstance(how, int):
                raise Wrong(how)
            with hub.lock:
                return self.dispatch(split.path)
        except Wrong as wrong:
            return self.reply(wrong.status, {"error": "no"}, wrong.headers | {"Retry-After": "0"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_any

    def dispatch(self, path):
        command = "GET" if self.command == "HEAD" else self.command
        for method, pattern, function in ROUTES:
            found = pattern.match(path)
            if method == command and found:
                return function(self, self.server.hub, *(unquote(part) for part in found.groups() if part is not None))
        raise Wrong(404)

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status, content=None, headers=()):
        if self.lost:
            self.close_connection = True
            return self.connection.close()
        content = self.strange or content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        begin, whole = 0, len(data)
        if isinstance(content, bytes) and (asked := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            status, begin = 206, int(asked.group(1))
            headers = {**dict(headers), "Content-Range": f"bytes {begin}-{whole - 1}/{whole}"}
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.half:
            self.wfile.write(data[begin : begin + (len(data) - begin) // 2])
            self.close_connection = True
            self.wfile.flush()
            return self.connection.close()
        return self.wfile.write(data[begin:])

    def known_user(self):
        """Whether a token came; a wrong one is refused."""
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Wrong(401, message="Invalid credentials in Authorization header")
        return given is not None

    def repo(self, name, *, write=False):
        user, repo = self.known_user(), self.server.hub.repos.get(name)
        if repo is None or (repo.private and not user):
            raise Wrong(404 if user else 401, "RepoNotFound")
        if write and not user:
            raise Wrong(401)
        return repo

    def commit_of(self, name, revision, **given):
        repo = self.repo(name, **given)
        oid = repo.resolve(revision)
        if oid is None:
            raise Wrong(404, "RevisionNotFound")
        return repo, oid


ID = r"([\w.-]+/[\w.-]+)"


@route("GET", "/api/whoami-v2")
def whoami(self, hub):
    if not self.known_user():
        raise Wrong(401, message="Invalid credentials in Authorization header")
    self.reply(200, {"name": "tester", "type": "user", "orgs": []})


@route("POST", "/api/repos/create")
def create(self, hub):
    if not self.known_user():
        raise Wrong(401)
    asked = json.loads(self.body)
    name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
    if name in hub.repos:
        return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
    repo = hub.repos[name] = Repo(private=asked.get("visibility") == "private" or asked.get("private") is True)
    repo.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
    return self.reply(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})


@route("POST", "/api/validate-yaml")
def validate_yaml(self, hub):
    text = json.loads(self.body)["content"]
    head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---"))
    for one in head.get("model-index", []):
        for result in one["results"]:
            assert {"type", "name"} <= result["dataset"].keys()
            assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    self.reply(200, {"errors": [], "warnings": []})


@route("POST", f"/api/models/{ID}/preupload/(.+)")
def preupload(self, hub, name, revision):
    repo, oid = self.commit_of(name, revision, write=True)
    files = []
    for asked in json.loads(self.body)["files"]:
        there = repo.commits[oid].files.get(asked["path"])
        known = git_oid(there) if isinstance(there, bytes) else there
        mode = "regular" if NEVER_LARGE.match(asked["path"]) else "lfs"
        files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
    self.reply(200, {"files": files})


@route("POST", f"/{ID}.git/info/lfs/objects/batch")
def lfs_batch(self, hub, name):
    repo, objects = self.repo(name, write=True), []
    for one in json.loads(self.body)["objects"]:
        answer = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in repo.lfs:
            answer["actions"] = {
                "upload": {"href": f"{hub.url}/lfs/{name}/{one['oid']}?signature={SIGNATURE}"},
                "verify": {"href": f"{hub.url}/lfs-verify/{name}"},
            }
        objects.append(answer)
    self.reply(200, {"objects": objects, "transfer": "basic"})


@route("PUT", f"/lfs/{ID}/([0-9a-f]+)")
def lfs_put(self, hub, name, oid):
    if self.query.get("signature") != [SIGNATURE] or hashlib.sha256(self.body).hexdigest() != oid:
        raise Wrong(400)
    hub.repos[name].lfs[oid] = self.body
    self.reply(200, {})


@route("POST", f"/lfs-verify/{ID}")
def lfs_verify(self, hub, name):
    if json.loads(self.body)["oid"] not in self.repo(name, write=True).lfs:
        raise Wrong(404)
    self.reply(200, {})


@route("POST", f"/api/models/{ID}/commit/(.+)")
def commit(self, hub, name, branch):
    repo, head = self.commit_of(name, branch, write=True)
    files, title = dict(repo.commits[head].files), ""
    for line in map(json.loads, self.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit", head) != head:
                raise Wrong(412)
        elif line["key"] == "file":
            content = base64.b64decode(value["content"])
            hub.bodies.append(content)
            files[value["path"]] = content
        elif line["key"] == "lfsFile":
            if value["oid"] not in repo.lfs:
                raise Wrong(400)
            files[value["path"]] = value["oid"]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    oid = repo.add(branch, files, title)
    self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})


@route("GET", f"/api/models/{ID}(?:/revision/(.+))?")
def model_info(self, hub, name, revision="main"):
    repo, oid = self.commit_of(name, revision)
    files = [{"rfilename": path} for path in repo.commits[oid].files]
    self.reply(200, {"_id": "0", "id": name, "modelId": name, "sha": oid, "private": repo.private, "siblings": files,
                     "tags": [], "downloads": 0, "likes": 0})  # fmt: skip


@route("GET", f"/api/models/{ID}/tree/([^/]+)")
def tree(self, hub, name, revision):
    repo, oid = self.commit_of(name, revision)
    found = []
    for path, content in repo.commits[oid].files.items():
        if isinstance(content, bytes):
            found.append({"type": "file", "path": path, "size": len(content), "oid": git_oid(content)})
            continue
        pointer = b"oid sha256:" + content.encode()
        size = len(repo.lfs.get(content, b""))
        found.append({"type": "file", "path": path, "size": size, "oid": git_oid(pointer),
                      "lfs": {"oid": content, "size": size, "pointerSize": len(pointer)}})  # fmt: skip
    self.reply(200, found)


@route("GET", f"/api/models/{ID}/refs")
def refs(self, hub, name):
    repo = self.repo(name)

    def listed(names, kind):
        return [{"name": n, "ref": f"{kind}{n}", "targetCommit": oid} for n, oid in names.items()]

    pulls = [{"name": n, "ref": n, "targetCommit": oid} for n, oid in repo.pulls.items()]
    self.reply(200, {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"),
                     "converts": [], "pullRequests": pulls})  # fmt: skip


@route("GET", f"/api/models/{ID}/commits/(.+)")
def commits(self, hub, name, revision):
    """Two to a page, so that a client that reads only the first page is found out."""
    repo, oid = self.commit_of(name, revision)
    page, size = int(self.query.get("p", ["0"])[0]), 2
    all_of_them = list(repo.history(oid))
    found = [
        {"id": one, "authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z",
         "title": repo.commits[one].title, "message": ""}
        for one in itertools.islice(all_of_them, page * size, (page + 1) * size)
    ]  # fmt: skip
    more = (page + 1) * size < len(all_of_them)
    link = f'<{hub.url}{urlsplit(self.path).path}?p={page + 1}>; rel="next"'
    self.reply(200, found, {"Link": link} if more else {})


@route("POST", f"/api/models/{ID}/tag/(.+)")
def make_tag(self, hub, name, revision):
    repo, oid = self.commit_of(name, revision, write=True)
    tag = json.loads(self.body)["tag"]
    if tag in repo.tags:
        raise Wrong(409)
    repo.tags[tag] = oid
    self.reply(200, {})


@route("DELETE", f"/api/models/{ID}/tag/(.+)")
def delete_tag(self, hub, name, tag):
    repo = self.repo(name, write=True)
    if tag not in repo.tags:
        raise Wrong(404, "RevisionNotFound")
    del repo.tags[tag]
    if not hub.keeps_unreachable:
        repo.drop_unreachable()
    self.reply(200, {})


@route("POST", f"/api/models/{ID}/branch/(.+)")
def make_branch(self, hub, name, branch):
    repo = self.repo(name, write=True)
    if branch in repo.branches:
        raise Wrong(409)
    repo.branches[branch] = repo.branches["main"]
    self.reply(200, {})


@route("DELETE", f"/api/models/{ID}/branch/(.+)")
def delete_branch(self, hub, name, branch):
    repo = self.repo(name, write=True)
    if branch == "main" or branch not in repo.branches:
        raise Wrong(403)
    del repo.branches[branch]
    if not hub.keeps_unreachable:
        repo.drop_unreachable()
    self.reply(200, {})


@route("POST", f"/api/models/{ID}/super-squash/(.+)")
def super_squash(self, hub, name, branch):
    repo, head = self.commit_of(name, branch, write=True)
    files = repo.commits[head].files
    del repo.branches[branch]
    repo.add(branch, files, json.loads(self.body)["message"])
    if not hub.keeps_unreachable:
        repo.drop_unreachable()
    self.reply(200, {})


@route("GET", f"/api/models/{ID}/lfs-files")
def lfs_files(self, hub, name):
    repo = self.repo(name, write=True)
    self.reply(200, [
        {"fileOid": oid, "filename": "model.safetensors", "oid": oid, "pushedAt": "2026-01-01T00:00:00.000Z",
         "ref": None, "size": len(content)}
        for oid, content in repo.lfs.items()
    ])  # fmt: skip


@route("POST", f"/api/models/{ID}/lfs-files/batch")
def delete_lfs(self, hub, name):
    repo = self.repo(name, write=True)
    for oid in json.loads(self.body)["deletions"]["sha"]:
        repo.lfs.pop(oid, None)
    self.reply(200, {})


@route("GET", f"/{ID}/resolve/([^/]+)/(.+)")
def resolve(self, hub, name, revision, path):
    repo, oid = self.commit_of(name, revision)
    content = repo.commits[oid].files.get(path)
    if content is None or (isinstance(content, str) and content not in repo.lfs):
        raise Wrong(404, "EntryNotFound")
    known = {"X-Repo-Commit": oid}
    if isinstance(content, bytes):
        return self.reply(200, content, {**known, "ETag": f'"{git_oid(content)}"'})
    large = {"X-Linked-ETag": f'"{content}"', "X-Linked-Size": str(len(repo.lfs[content]))}
    # Large files come from another host; redirects on its own the client follows before it reads the headers.
    elsewhere = hub.url.replace("127.0.0.1", "localhost")
    where = f"{elsewhere}/cdn/{name}/{content}?signature={SIGNATURE}"
    return self.reply(302, {}, {**known, **large, "Location": where})


@route("GET", f"/cdn/{ID}/([0-9a-f]+)")
def cdn(self, hub, name, oid):
    self.reply(200, hub.repos[name].lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def talk_to(hub, monkeypatch, tmp_path):
    """Let the real client of this process ask the loopback Hub, with the right token, and not wait between tries."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # made when the module was imported; PEFT asks it
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # it waits seconds before it tries again
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def loopback_hub(**given):
    """A Hub that answers at ``hub.url`` until the block ends."""
    hub = Hub(**given)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.hub = True, hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # sees its end that soon
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
