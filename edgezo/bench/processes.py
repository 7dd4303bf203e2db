"""Worker processes that answer one request at a time, so that two can take turns on the cores.

A request is one line of JSON, ``{"method": name, ...arguments}``; the answer is another,
``{"result": ...}`` or ``{"error": sentence, "status": exit status}``. A worker that waits for a
request sleeps in a read and costs no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from edgezo_runtime.errors import EdgezoError, InputError

_END_SECONDS = 10


def serve(worker: object) -> None:
    """Answers requests for the public methods of `worker` until its standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(worker, request.pop("method"))(**request)}
        except Exception as error:
            status = getattr(error, "exit_status", EdgezoError.exit_status)
            message = str(error) if isinstance(error, EdgezoError) else repr(error)
            answer = {"error": message, "status": status}
        print(json.dumps(answer), file=answers, flush=True)


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Returns how many seconds each of `count` calls of `action` took."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return seconds


class WorkerProcess:
    """A fresh Python process that runs `serve`; leaving the context ends it.

    Args:
        arguments: Python's: ``"-m", module``, or a script's path.
    """

    def __init__(self, *arguments: str) -> None:
        self._name = Path(arguments[-1]).name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed on exit)
        self._process = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._requests.close()
        if exception == (None, None, None):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._errors.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """Calls the worker's `method` and returns its result.

        Raises:
            InputError: the worker was given something wrong.
            EdgezoError: the worker failed or died.
        """
        try:
            self._requests.write(json.dumps({"method": method, **arguments}) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        except OSError:  # a broken pipe: the worker is gone
            line = ""
        if not line:
            raise EdgezoError(self._obituary())
        answer = json.loads(line)
        if "error" not in answer:
            return answer["result"]
        kind = InputError if answer["status"] == InputError.exit_status else EdgezoError
        raise kind(answer["error"])

    @property
    def _requests(self) -> Any:
        return self._process.stdin

    @property
    def _answers(self) -> Any:
        return self._process.stdout

    def _obituary(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "it said nothing; is there enough memory?"
        return f"the process {self._name} ended with status {status}: {reason}"


def _environment() -> dict[str, str]:
    """Returns this process's environment, with its import path and the allocator's defaults."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return environment
