"""A server on this machine that takes what W&B's own client sends, and remembers all of it, byte for byte."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "k" * 40


class Server(ThreadingHTTPServer):
    """What came, in order.

    Attributes:
        asked: GraphQL requests: (operation, variables).
        uploads: (name, bytes).
        history: rows of all runs.
        artifacts: name -> type of those that were logged.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.uploads, self.history, self.artifacts = [], [], [], {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are no news."""

    def environment(self, base):
        """The environment in which W&B's client talks to this server."""
        clean = {key: value for key, value in base.items() if not key.startswith("WANDB_")}
        return clean | {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY}

    def variables(self, operation):
        """The variables of all requests of one kind."""
        return [variables for name, variables in self.asked if name == operation]

    def answer(self, operation, variables):
        """To a GraphQL request."""
        if operation == "UpsertBucket":
            project = {"id": "P", "name": variables.get("project") or "p", "entity": {"id": "E", "name": "me"}}
            name = variables.get("name") or "unnamed"
            bucket = {"id": "UnVuOjE=", "name": name, "displayName": name, "description": "", "config": None}
            bucket |= {"sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "Viewer":
            teams = {"edges": [{"node": {"name": "me"}}]}
            return {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "email": "", "teams": teams}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": self._place(name)} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            asked = variables["input"]
            self.artifacts[asked["artifactCollectionName"]] = asked["artifactTypeName"]
            own = {"id": asked["artifactCollectionName"], "state": "PENDING"}
            return {"createArtifact": {"artifact": own | {"artifactSequence": {"id": "S", "latestArtifact": None}}}}
        if operation == "CreateArtifactManifest":
            file = {"id": "F", "name": "m", "uploadUrl": self._place("manifest"), "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}
        if operation == "CreateArtifactFiles":
            return {"createArtifactFiles": {"files": {"edges": [{"node": n} for n in self._files(variables)]}}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "ArtifactMembershipByName":
            return {"project": {"artifactCollectionMembership": self._member(variables["name"].split(":")[0])}}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": variables["artifactID"]}}}
        if operation == "UpsertView2":
            return {"upsertView": {"view": {"id": "V", "name": "nw-1-v", "displayName": ""}, "inserted": True}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "A1", "digest": "d"}}}
        return {}

    def _member(self, name):
        """What is known of an artifact that was logged; nothing of others."""
        if name not in self.artifacts:
            return None
        project = {"id": "P", "internalId": "P", "name": "btp", "entity": {"name": "me"}}
        home = {"__typename": "ArtifactSequence", "name": name, "project": project}
        made = {"createdAt": "2026-01-01T00:00:00", "versionIndex": 0, "aliases": []}
        own = {"__typename": "Artifact", "id": name, "artifactSequence": home, "digest": "d", "size": 1, "fileCount": 1}
        own |= {"artifactType": {"name": self.artifacts[name]}, "description": None, "metadata": "{}", "tags": []}
        own |= {"ttlDurationSeconds": 0, "ttlIsInherited": False, "historyStep": None, "state": "COMMITTED"}
        own |= {"commitHash": None, "updatedAt": None} | made
        member = {"__typename": "ArtifactCollectionMembership", "id": "M"} | made
        return member | {"artifactCollection": home, "artifact": own}

    def _files(self, variables):
        for file in variables["input"]["artifactFiles"]:
            place = {"uploadUrl": self._place(file["name"]), "uploadHeaders": [], "uploadMultipartUrls": None}
            own = {"id": "F", "name": file["name"], "displayName": file["name"], "storagePath": "x"}
            yield own | place | {"artifact": {"id": "A1"}}

    def _place(self, name):
        return f"{self.address}/upload/{name}"


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole, notes it, and answers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        """Nothing is printed."""

    def respond(self):
        """To any request."""
        body, found = self._body(), {}
        if self.path.startswith("/upload/"):
            self.server.uploads.append((self.path.removeprefix("/upload/"), body))
        elif self.path.startswith("/graphql"):
            asked = json.loads(body)
            operation = asked.get("operationName") or asked["query"].split("(")[0].split("{")[0].split()[-1]
            self.server.asked.append((operation, asked.get("variables") or {}))
            found = {"data": self.server.answer(operation, asked.get("variables") or {})}
        elif self.path.endswith("file_stream"):
            files = json.loads(body).get("files", {})
            rows = files.get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += [json.loads(row) for row in rows]
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text if self.command != "HEAD" else b"")

    do_GET = do_POST = do_PUT = do_HEAD = respond

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body


@contextmanager
def serving():
    """A server, until the block ends."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
