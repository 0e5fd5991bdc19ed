"""The write side of hub_server.py: repositories made, files sent by commit and as large objects, in
one piece or in parts. Standard library only."""

import base64
import hashlib
import json
import re
import urllib.parse

PART = 65536


def answer(hub, request):
    """A POST or PUT."""
    body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
    path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
    with hub.lock:
        hub.requests.append((request.command, path, None))
        if request.headers.get("Authorization"):
            hub.tokens.add(request.headers["Authorization"])
        breaks = hub.break_puts > 0 and request.command == "PUT"
        hub.break_puts -= breaks
    if breaks:
        request.close_connection = True
        request.connection.shutdown(2)
        return
    stored = re.fullmatch(r"/store/([0-9a-f]{64})(?:/(\d+))?", path)
    if request.command == "PUT" and stored:
        # As storage does: the URL is signed, a token has no business here.
        assert "Authorization" not in request.headers
        with hub.lock:
            if stored[2]:
                hub.parts.setdefault(stored[1], {})[int(stored[2])] = body
            else:
                hub.objects[stored[1]] = body
        return reply(request, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
    # The real client completes an upload in parts without its token: that URL is signed, too.
    signed = path.startswith("/complete/")
    if not signed and request.headers.get("Authorization") != f"Bearer {hub.token}":
        return hub.refuse(request, 401, "")
    for pattern, handler in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and request.command == "POST":
            return handler(hub, request, match[1] if match.groups() else "", body)
    return hub.refuse(request, 404, "")


def reply(request, value, headers=(), status=200):
    body = json.dumps(value).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    for name, text in dict(headers).items():
        request.send_header(name, text)
    request.end_headers()
    request.wfile.write(body)


def create(hub, request, _, body):
    asked = json.loads(body)
    name = f"{asked.get('organization') or 'org'}/{asked['name']}"
    with hub.lock:
        there = name in hub.repositories
        if not there:
            hub.repositories[name] = hub.empty_repository(asked.get("private", False))
    if there:
        return reply(request, {"error": "You already created this model repo"}, status=409)
    reply(request, {"url": f"{hub.endpoint}/{name}"})


def validate(hub, request, _, body):
    reply(request, {"errors": [], "warnings": []})


def preupload(hub, request, name, body):
    files = [{"path": file["path"], "shouldIgnore": False,
              "uploadMode": "lfs" if file["size"] >= hub.large_bytes else "regular"}
             for file in json.loads(body)["files"]]
    reply(request, {"files": files})


def batch(hub, request, name, body):
    objects = []
    for wanted in json.loads(body)["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        entry = {"oid": oid, "size": size}
        if oid not in hub.objects:
            store = f"{hub.endpoint}/store/{oid}"
            if size > PART:
                header = {"chunk_size": str(PART)}
                header |= {str(i + 1): f"{store}/{i + 1}" for i in range(-(-size // PART))}
                upload = {"href": f"{hub.endpoint}/complete/{name}", "header": header}
            else:
                upload = {"href": store}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.endpoint}/verify/{name}"}}
        objects.append(entry)
    reply(request, {"transfer": "basic", "objects": objects})


def complete(hub, request, name, body):
    asked = json.loads(body)
    parts = hub.parts.pop(asked["oid"])
    assert [part["partNumber"] for part in asked["parts"]] == sorted(parts)
    hub.objects[asked["oid"]] = b"".join(parts[number] for number in sorted(parts))
    reply(request, {})


def verify(hub, request, name, body):
    asked = json.loads(body)
    data = hub.objects.get(asked["oid"], b"")
    good = hashlib.sha256(data).hexdigest() == asked["oid"] and len(data) == asked["size"]
    reply(request, {}, status=200 if good else 422)


def commit(hub, request, name, body):
    repository = hub.repositories[name]
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            repository.files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            repository.files[value["path"]] = hub.objects[value["oid"]]
    repository.commit = hashlib.sha1(body).hexdigest()
    repository.revisions |= {"main", repository.commit}
    hub.commits += 1
    reply(request, {"commitOid": repository.commit, "commitUrl": f"{hub.endpoint}/{name}/commit/x",
                    "success": True})


ROUTES = [
    (r"/api/repos/create", create),
    (r"/api/validate-yaml", validate),
    (r"/api/models/([^/]+/[^/]+)/preupload/main", preupload),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    (r"/complete/([^/]+/[^/]+)", complete),
    (r"/verify/([^/]+/[^/]+)", verify),
    (r"/api/models/([^/]+/[^/]+)/commit/main", commit),
]
