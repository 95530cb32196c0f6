"""A stand-in for the hub: the requests that `datasets` and `huggingface_hub` make, answered from a
folder. Run as a program: FOLDER, of repositories OWNER/NAME; prints its port. `_broken` in FOLDER
says after how many ranges of data each connection breaks, and `_log` gets what was asked."""

import hashlib
import http.server
import json
import pathlib
import re
import sys
import urllib.parse

ROOT = pathlib.Path(sys.argv[1])
API = re.compile(r"/api/datasets/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit(repo: str) -> str:
    """A repository's newest commit: it follows from the files."""
    digest = hashlib.sha1()
    for path in files(repo):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def files(repo: str) -> list[pathlib.Path]:
    return sorted(path for path in (ROOT / repo).rglob("*") if path.is_file())


def entry(repo: str, path: pathlib.Path) -> dict:
    content = path.read_bytes()
    about = {
        "type": "file",
        "path": str(path.relative_to(ROOT / repo)),
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if path.suffix != ".md":
        sha = hashlib.sha256(content).hexdigest()
        about["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    return about


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        with (ROOT / "_log").open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range', '')}\n")

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        if (found := FILE.fullmatch(path)) and (ROOT / found[1]).is_dir():
            if found[2] not in ("main", commit(found[1])):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif (ROOT / found[1] / found[3]).is_file():
                self.file(found[1], ROOT / found[1] / found[3])
            else:
                self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        elif (found := API.fullmatch(path)) and (ROOT / found[1]).is_dir():
            repo, what, revision, below = found.groups()
            if revision not in (None, "main", commit(repo)):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif what == "tree":
                entries = [entry(repo, path) for path in files(repo)]
                self.answer_json([e for e in entries if e["path"].startswith(below or "")])
            elif what == "paths-info":
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = urllib.parse.parse_qs(body).get("paths") or json.loads(body)["paths"]
                self.answer_json([entry(repo, ROOT / repo / path) for path in asked])
            else:
                siblings = [{"rfilename": entry(repo, path)["path"]} for path in files(repo)]
                known = {"id": repo, "sha": commit(repo), "private": False, "siblings": siblings}
                self.answer_json({**known, "gated": False, "tags": [], "downloads": 0, "likes": 0})
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_POST = do_HEAD = do_GET

    def file(self, repo: str, path: pathlib.Path) -> None:
        content = path.read_bytes()
        about = {"X_Repo_Commit": commit(repo), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        about["Accept_Ranges"] = "bytes"
        if not (asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            self.answer(200, content, **about)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        part = content[first : last + 1]
        about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        broken = ROOT / "_broken"
        if broken.exists():
            left = int(broken.read_text())
            broken.write_text(str(left - 1))
            if left <= 0:  # Half of what was promised, and the line is cut.
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
        self.answer(206, part, **about)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
