"""The two errors a user can meet; each message is one sentence that says what would be right."""

from __future__ import annotations


class EdgezoError(Exception):
    """Something failed while working (exit status 1): a full disk, a diverged run, a lost file."""

    exit_status = 1


class InputError(EdgezoError):
    """What the user gave is wrong (exit status 2): an argument, a data row, a bundle, a journal."""

    exit_status = 2
