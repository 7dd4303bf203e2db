"""A stand-in for huggingface.co: the requests that fetching a model makes, of folders on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_INFO, _RESOLVE = "/api/models/", "/resolve/"
_CODES = {401: "RepoNotFound", 403: "GatedRepo"}


class HubServer(ThreadingHTTPServer):
    """Serves models under their ids.

    Attributes:
        models: the folder of each id.
        statuses: what is answered in place of a model or of a file, by its id or path.
        cut: paths of files whose bytes stop in the middle.
        seen: method, path and range of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Path] = {}
        self.statuses: dict[str, int] = {}
        self.cut: set[str] = set()
        self.seen: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def fetched(self) -> set[str]:
        """Paths of the files that were asked for."""
        return {path.partition(_RESOLVE)[2][41:] for _, path, _ in self.seen if _RESOLVE in path}


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    """Gives a server that answers until the end of the block."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        path = unquote(self.path)
        self.server.seen.append((self.command, path, self.headers.get("Range")))
        if path.startswith(_INFO):
            name = path.removeprefix(_INFO).partition("/revision/")[0]
            if not self._refused(name):
                self._send(200, json.dumps(self._info(name)).encode(), {})
            return
        name, _, place = path[1:].partition(_RESOLVE)
        file = place.partition("/")[2]
        if not self._refused(name, file):
            self._send_file(self.server.models[name] / file, file)

    def _info(self, name: str) -> dict[str, object]:
        folder = self.server.models[name]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return {"id": name, "sha": _commit(name), "siblings": siblings}

    def _refused(self, name: str, file: str = "") -> bool:
        status = self.server.statuses.get(file or name)
        if name not in self.server.models:
            status = 401
        if status is not None:
            code = _CODES.get(status)
            self._send(status, b"", {} if code is None else {"X-Error-Code": code})
        return status is not None

    def _send_file(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        headers = {
            "X-Repo-Commit": _commit(unquote(self.path)[1:].partition(_RESOLVE)[0]),
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        asked = self.headers.get("Range")
        if asked is None:
            self._send(200, data, headers, len(data) // 2 if name in self.server.cut else None)
            return
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206, data[start:], headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])
        self.close_connection = True


def _commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
