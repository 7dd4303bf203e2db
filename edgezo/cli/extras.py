"""How to install what an extra brings."""

from __future__ import annotations

import re
from importlib import metadata

_CARDS = "onnxruntime-gpu"


def to_install(extra: str) -> str:
    """Returns the command that installs an extra beside the ONNX Runtime that is there.

    Extras bring the CPU's, whose files would replace those of the one for cards. Where that is
    installed, the extra's other packages are named.
    """
    try:
        metadata.version(_CARDS)
        required = metadata.requires("edgezo") or []
    except metadata.PackageNotFoundError:
        return f"pip install 'edgezo[{extra}]'"
    own = (each.partition(";") for each in required)
    names = [
        f"'{name.strip()}'"
        for name, _, condition in own
        if re.search(rf"extra == ['\"]{extra}['\"]", condition)
        and not name.startswith("onnxruntime")
    ]
    return f"pip install {' '.join(names)}"
