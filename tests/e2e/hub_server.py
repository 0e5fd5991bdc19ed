"""A model hub that speaks Hugging Face's protocol, from folders, with the faults that tests ask
for; hub_write_side.py is what it does with uploads. Standard library only."""
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

import hub_write_side

LARGE = 1024  # bytes from which a file is kept as a large one (LFS), known by its SHA-256


def git_name(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Repository:
    def __init__(self, files, commit, revisions=("main",), gated=False, private=False):
        self.files = dict(files)  # path -> bytes
        self.commit = commit
        self.revisions = set(revisions) | {commit}
        self.gated = gated
        self.private = private

    @staticmethod
    def of_folder(folder, commit, **options):
        folder = pathlib.Path(folder)
        return Repository({str(path.relative_to(folder)): path.read_bytes()
                           for path in sorted(folder.rglob("*")) if path.is_file()}, commit, **options)


class HubServer:
    """with HubServer({"org/name": Repository(...)}) as hub: hub.endpoint"""

    def __init__(self, repositories, token="hf_secret"):
        self.repositories = repositories
        self.token = token
        self.requests = []        # (method, path, range)
        self.tokens = set()       # every Authorization header seen
        self.cut_after = {}       # path -> bytes sent before the connection breaks, once each
        self.rate_limited = 0     # so many answers are 429
        self.redirect_files = False  # large files by way of another address, as the hub does
        self.objects, self.parts = {}, {}  # large files that were sent, by SHA-256
        self.large_bytes = LARGE
        self.break_puts = 0       # so many uploads break off
        self.commits = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, True)

            def do_HEAD(self):
                hub.answer(self, False)

            def do_POST(self):
                hub_write_side.answer(hub, self)

            do_PUT = do_POST

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def empty_repository(self, private):
        return Repository({}, "0" * 40, private=private)

    def answer(self, request, with_body):
        url = urllib.parse.urlsplit(request.path)
        path = urllib.parse.unquote(url.path)
        with self.lock:
            self.requests.append((request.command, path, request.headers.get("Range")))
            if request.headers.get("Authorization"):
                self.tokens.add(request.headers["Authorization"])
            limited = self.rate_limited > 0
            self.rate_limited -= limited
        if limited:
            return self.refuse(request, 429, "", {"Retry-After": "1"})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        stored = re.fullmatch(r"/stored/([0-9a-f]+)", path)
        if stored:
            data = next((data for repository in self.repositories.values()
                         for data in repository.files.values()
                         if sha256(data) == stored[1]), None)
            return self.send(request, data, {}, with_body, path)
        match = api or file
        repository = self.repositories.get(match[1]) if match else None
        allowed = request.headers.get("Authorization") == f"Bearer {self.token}"
        if repository is None or (repository.private and not allowed):
            return self.refuse(request, 401 if not allowed else 404, "RepoNotFound")
        revision = (match[3] if api else match[2]) or "main"
        if revision not in repository.revisions:
            return self.refuse(request, 404, "RevisionNotFound")
        if api and match[2] != "tree":
            return self.send_json(request, {"id": match[1], "modelId": match[1],
                                            "sha": repository.commit, "siblings": [
                                                {"rfilename": name} for name in repository.files]})
        if repository.gated and not allowed:
            return self.refuse(request, 401, "GatedRepo")
        if api:
            return self.send_json(request, self.tree(repository))
        data = repository.files.get(match[3])
        if data is None:
            return self.refuse(request, 404, "EntryNotFound")
        large = len(data) >= LARGE
        etag = sha256(data) if large else git_name(data)
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag}"'}
        if large and self.redirect_files:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data)),
                        "Location": f"{self.endpoint.replace('127.0.0.1', 'localhost')}/stored/{etag}",
                        "ETag": '"of-the-redirect"'}
            return self.send(request, b"", headers, with_body, path, status=302)
        self.send(request, data, headers, with_body, path)

    def tree(self, repository):
        entries = []
        for name, data in repository.files.items():
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_name(data)}
            if len(data) >= LARGE:
                entry["lfs"] = {"oid": sha256(data), "size": len(data),
                                "pointerSize": 134}
            entries.append(entry)
        return entries

    def refuse(self, request, status, code, headers=()):
        body = json.dumps({"error": code}).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        if code:
            request.send_header("X-Error-Code", code)
        for name, value in dict(headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def send_json(self, request, value):
        self.send(request, json.dumps(value).encode(), {"Content-Type": "application/json"}, True, "")

    def send(self, request, data, headers, with_body, path, status=200):
        total = len(data)
        begin = 0
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if wanted and status == 200:
            begin = int(wanted[1])
            end = min(int(wanted[2]) + 1 if wanted[2] else total, total)
            data = data[begin:end]
            status = 206
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{total}"}
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        if not with_body:
            return
        with self.lock:
            cut = self.cut_after.pop(path, None)
        if cut is not None:
            request.wfile.write(data[:cut])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(2)
            return
        request.wfile.write(data)
