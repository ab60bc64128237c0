"""A hub on this machine, which serves directories as models by the hub's protocol, so that real downloads can be tried.

    python scripts/stand_in_hub.py meta-llama/Llama-3.1-8B=DIRECTORY &
    HF_ENDPOINT=http://127.0.0.1:8080 minitron importance llama-3.1-8b --data text.txt

Answers what a client asks to download a model: its list of files, and each file with the headers that name its content.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

PIECE = 1 << 22  # bytes that are sent at once
LARGE = 10_000_000  # bytes from which the hub names a file by the SHA-256 of its content


class Repository:
    """A directory that is served as a model, at one commit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def names(self) -> dict[str, str]:
        """File -> the hash that the hub gives it: git's SHA-1 of a small file, the SHA-256 of a large one."""
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file())
        return {path.relative_to(self.directory).as_posix(): content_name(path) for path in paths}

    @property
    def commit(self) -> str:
        """A name for what all files hold."""
        return hashlib.sha1(json.dumps(self.names).encode(), usedforsecurity=False).hexdigest()

    def tree(self) -> list[dict[str, object]]:
        """Files as the hub lists them."""
        return [self._entry(file, name) for file, name in self.names.items()]

    def _entry(self, file: str, name: str) -> dict[str, object]:
        size = (self.directory / file).stat().st_size
        entry: dict[str, object] = {"type": "file", "oid": name[:40], "size": size, "path": file}
        return entry | ({"lfs": {"oid": name, "size": size, "pointerSize": 134}} if len(name) == 64 else {})


def content_name(path: Path) -> str:
    """Hash that names a file's content on the hub."""
    size = path.stat().st_size
    is_large = size >= LARGE
    found = hashlib.sha256() if is_large else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def serving(models: Mapping[str, Path]) -> Iterator[str]:
    """Serve directories under hub ids while the block runs. Gives the address, for HF_ENDPOINT."""
    server = server_of(models, 0)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def server_of(models: Mapping[str, Path], port: int) -> ThreadingHTTPServer:
    """Server of directories under hub ids, which does not run yet."""
    repositories = {name: Repository(directory) for name, directory in models.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            for name, repository in repositories.items():
                if path == f"api/models/{name}" or path.startswith(f"api/models/{name}/revision/"):
                    files = [{"rfilename": file} for file in repository.names]
                    return self._json({"id": name, "modelId": name, "sha": repository.commit, "siblings": files})
                if path.startswith(f"api/models/{name}/tree/"):
                    return self._json(repository.tree())
                if path.startswith(f"{name}/resolve/"):
                    file = path.removeprefix(f"{name}/resolve/").partition("/")[2]
                    if file in repository.names:
                        return self._file(repository, file, with_body=with_body)
                    return self._missing("EntryNotFound")
            return self._missing("RepoNotFound")

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, repository: Repository, file: str, *, with_body: bool) -> None:
            path = repository.directory / file
            size, start = path.stat().st_size, self._start()
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", repository.commit)
            self.send_header("ETag", f'"{repository.names[file]}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(size - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            if with_body:
                with path.open("rb") as content:
                    content.seek(start)
                    self._send(content)

        def _start(self) -> int:
            """First byte that is asked for."""
            asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            return int(asked) if asked.isdigit() else 0

        def _send(self, content: BinaryIO) -> None:
            while piece := content.read(PIECE):
                self.wfile.write(piece)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="ID=DIRECTORY", help="hub id of a model and what it holds")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    models = {name: Path(directory) for name, _, directory in (model.partition("=") for model in args.models)}
    print(f"HF_ENDPOINT=http://127.0.0.1:{args.port}", flush=True)
    server_of(models, args.port).serve_forever()


if __name__ == "__main__":
    main()
