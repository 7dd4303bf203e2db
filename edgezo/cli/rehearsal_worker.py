"""A rehearsal of `edgezo train`, with all that the command itself has in memory."""

from __future__ import annotations

import edgezo.cli.train as train
from edgezo.bench.processes import serve
from edgezo.cli.adapters import add_adapter
from edgezo.plan.rehearsal import Rehearsal

if __name__ == "__main__":
    assert train.command  # imported for the memory it takes
    serve(Rehearsal(add_adapter))
