"""A hub on this machine: just enough of its HTTP interface for `from_pretrained` and `load_dataset`, over local folders."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the folders of `server.repos`; a key is the path on the hub, as in "datasets/rajpurkar/squad"."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Prints nothing; the server keeps the paths that were requested."""

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def do_POST(self):
        """paths-info: which of the requested files exist."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        for repo, folder in self.server.repos.items():
            if self.path.startswith(f"/api/{self.api(repo)}/paths-info/"):
                entries = [self.entry(folder, folder / name) for name in body["paths"] if (folder / name).is_file()]
                return self.reply(200, json.dumps(entries).encode())
        return self.reply(404, b"")

    def answer(self, *, send):
        path = self.path.split("?")[0]
        self.server.requests.append(self.path)
        for repo, folder in self.server.repos.items():
            if path.startswith(f"/{repo}/resolve/"):
                revision, name = path.removeprefix(f"/{repo}/resolve/").split("/", 1)
                self.server.revisions.add((repo, revision))
                return self.file(folder / name, send=send)
            if path.startswith(f"/api/{self.api(repo)}"):
                rest = path.removeprefix(f"/api/{self.api(repo)}").strip("/").split("/")
                if rest[0] == "tree":
                    subfolder = folder.joinpath(*rest[2:])
                    if not subfolder.is_dir():
                        return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                    files = subfolder.rglob("*") if "recursive=True" in self.path else subfolder.iterdir()
                    return self.reply(200, json.dumps([self.entry(folder, file) for file in sorted(files)]).encode())
                names = [{"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()]
                info = {"id": repo.removeprefix("datasets/"), "sha": COMMIT, "siblings": names, "private": False, "tags": []}
                return self.reply(200, json.dumps(info).encode())
        return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def api(repo):
        return repo if repo.startswith("datasets/") else f"models/{repo}"

    @staticmethod
    def entry(folder, file):
        if file.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": str(file.relative_to(folder))}
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "oid": oid, "size": file.stat().st_size, "path": str(file.relative_to(folder))}

    def file(self, path, *, send):
        if not path.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self.reply(200, content, headers, send=send)

    def reply(self, status, content, headers=None, *, send=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if send and self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[ThreadingHTTPServer]:
    """A hub with these repositories at `server.address`; `asked` are the requested paths, `revisions` the pins."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repos, server.requests, server.revisions = repos, [], set()
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
