"""The bundle: a folder with a weight-free graph, its weights, its tokenizer and a manifest.

Both sides use this schema: the exporter writes bundles, the engine reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgezo_runtime import dtypes, wire
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import sha256, write_text

SCHEMA = 1
MANIFEST = "edgezo.json"
GRAPH = "graph.onnx"
#: What `GRAPH` computes, in fewer kernels; optional.
LEAN = "lean.onnx"
GENERATE = "generate.onnx"
GRADIENTS = "grad.onnx"
TANGENTS = "tangent.onnx"
WEIGHTS = "model.safetensors"
#: Kind of integers that stand for a weight: they are never trained, and the runtime packs them.
QUANTIZED = "quantized"
#: Kind of LoRA's matrices.
LORA = "lora"
#: What the integers of a weight have behind its name.
PACKED = "_packed"
SIDE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
KINDS = ("causal", "masked", "head", "seq2seq")
#: The form of a model that continues its text: of any bundle that says nothing else.
CAUSAL: Mapping[str, Any] = {"kind": "causal"}


@dataclass(frozen=True)
class Parameter:
    """One weight tensor: a graph input of the same name.

    Attributes:
        name: its key in the checkpoint.
        shape: its shape in the checkpoint's own layout.
        dtype: its dtype's name.
        kind: ``"embedding"``, ``"linear"``, ``"norm"``, ``"bias"``, ``"quantized"`` or ``"scale"``;
            an adapter's own for its tensors.
        aliases: other checkpoint keys that are tied to this tensor.
        init: how an adapter's tensor begins (see `adapter_init`); empty for weights of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    aliases: tuple[str, ...] = ()
    init: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Port:
    """One data input or output of the graph; a dimension is a number or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Manifest:
    """What `edgezo.json` holds (see docs/bundle.md).

    Attributes:
        parameters: every weight of the graph, in arena order.
        inputs: the graph's data inputs (the parameters are inputs too, and not repeated here).
        outputs: the graph's outputs.
        context_length: the longest sequence that the model takes, in tokens; None where the graph
            takes arrays and not text.
        task: the bundle's default task and its settings, e.g. ``{"name": "classify", ...}``.
        files: SHA-256 of each other file of the bundle.
        versions: versions of the programs that made it.
        form: what kind of model it is, and what tasks must know of it: its ``"kind"``, one of
            `KINDS`; of a head its ``"labels"`` and the token that it reads, ``"position"`` 0 or -1;
            of an encoder and decoder the token that begins every answer, ``"decoder_start"``.
        adapter: kind and settings of the adapter in the graph; empty if there is none.
        schema: version of this schema.
    """

    parameters: tuple[Parameter, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    context_length: int | None
    task: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=lambda: CAUSAL)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def stored(self) -> tuple[Parameter, ...]:
        """The parameters that the weights' file holds: all but an adapter's."""
        return tuple(p for p in self.parameters if not p.init)

    def to_json(self) -> str:
        """Returns the manifest as the text of `edgezo.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Parses `edgezo.json`; `path` is named in errors. Raises InputError if it is damaged."""
        try:
            raw = json.loads(text)
            schema = raw["schema"]
            if schema != SCHEMA:
                raise InputError(
                    f"{path} has schema {schema}, this edgezo reads schema {SCHEMA}: "
                    "export the bundle again or install the edgezo that made it"
                )
            parameters = tuple(
                Parameter(
                    p["name"],
                    tuple(p["shape"]),
                    p["dtype"],
                    p["kind"],
                    tuple(p["aliases"]),
                    p.get("init", ""),
                )
                for p in raw["parameters"]
            )
            inputs, outputs = (
                tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in raw[key])
                for key in ("inputs", "outputs")
            )
            manifest = cls(
                parameters,
                inputs,
                outputs,
                raw["context_length"],
                dict(raw["task"]),
                dict(raw["files"]),
                dict(raw["versions"]),
                dict(raw.get("form", CAUSAL)),
                dict(raw.get("adapter", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not an edgezo manifest: {error!r}") from error
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """Checks what nothing else would: a manifest may have been damaged or made to harm."""
        names = [name for p in self.parameters for name in (p.name, *p.aliases)]
        ports = [(port.name, port.dtype, *port.shape) for port in (*self.inputs, *self.outputs)]
        if not all(isinstance(word, str) for word in (*names, *(p.kind for p in self.parameters))):
            raise InputError(f"{path} has a parameter whose name or kind is not text")
        if len(set(names)) < len(names):
            raise InputError(f"{path} names one parameter twice")
        for parameter in self.parameters:
            if not isinstance(parameter.dtype, str):
                raise InputError(f"{path}: parameter {parameter.name!r} has a damaged dtype")
            dtypes.named(parameter.dtype)
            if not isinstance(parameter.init, str) or (parameter.init and not self.adapter):
                raise InputError(f"{path}: parameter {parameter.name!r} has a damaged init")
            if not all(type(n) is int and n >= 0 for n in parameter.shape):
                raise InputError(f"{path}: parameter {parameter.name!r} has a damaged shape")
        if not all(isinstance(word, str | int) for port in ports for word in port):
            raise InputError(f"{path} has a damaged input or output")
        length = self.context_length
        if length is not None and (type(length) is not int or length < 1):
            raise InputError(f"{path} has context length {length!r}, not a number > 0")
        if not _is_form(self.form):
            raise InputError(
                f"{path} has the form {dict(self.form)!r}, which this edgezo does not know: export "
                "the bundle again or install the edgezo that made it"
            )
        for name, digest in self.files.items():
            # The plain name of a file in the folder: nothing outside it is ever opened.
            if not isinstance(name, str) or not isinstance(digest, str):
                raise InputError(f"{path} names the file {name!r} with checksum {digest!r}")
            if name in ("", ".", "..") or set(name) & set("/\\:\0"):
                raise InputError(
                    f"{path} names the file {name!r}: a bundle's files lie in its own folder"
                )


def _is_form(form: Mapping[str, Any]) -> bool:
    """Whether `form` is a known kind with what tasks must know of it."""
    labels = form.get("labels", ["", ""])
    return (
        form.get("kind") in KINDS
        and form.get("position", 0) in (0, -1)
        and isinstance(labels, list | tuple)
        and len(labels) > 1
        and all(isinstance(label, str) for label in labels)
        and ("labels" in form and "position" in form) == (form["kind"] == "head")
        and (type(form.get("decoder_start")) is int) == (form["kind"] == "seq2seq")
    )


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its manifest.

    Attributes:
        folder: where its files are.
        manifest: what they are.
        adapted: the graphs with an adapter put into them, by their files' names, where the
            folder's own have none.
    """

    folder: Path
    manifest: Manifest
    adapted: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def graph(self) -> Path:
        """The graph's file."""
        return self.folder / GRAPH

    @property
    def generates(self) -> bool:
        """Whether it has a generation graph."""
        return GENERATE in self.manifest.files

    def read_graph(self, name: str = GRAPH) -> bytes:
        """Returns `graph.onnx`, or the graph `name`, as the bytes of an ONNX file.

        Raises:
            InputError: the file is damaged, or would have others opened.
        """
        if name in self.adapted:
            return self.adapted[name]
        path = self.folder / name
        try:
            graph = path.read_bytes()
            if not wire.reads_files(graph):
                return graph
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path} is not a sound ONNX file: {error}") from error
        raise InputError(f"{path} keeps data in other files: a bundle's graph holds its own")

    @property
    def weights(self) -> Path:
        """The weights' file."""
        return self.folder / WEIGHTS

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which names this bundle in journals."""
        if self.adapted:  # the digest of the bundle that an export of it would write
            return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()
        return sha256(self.folder / MANIFEST)


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a manifest."""
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path | str) -> Bundle:
    """Opens the bundle in `folder` and checks every file but the weights against the manifest.

    The weights are checked while they are loaded, in the same pass.

    Raises:
        InputError: no bundle there, or a file is missing or does not match its checksum.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.exists():
        raise InputError(
            f"there is no bundle {folder}: make one with `edgezo export` or `edgezo demo`"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder} is not an edgezo bundle: it has no readable {MANIFEST}; "
            "make one with `edgezo export` or `edgezo demo`"
        ) from error
    manifest = Manifest.from_json(text, path)
    for name, digest in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"bundle {folder} lacks {name}, which its manifest names")
        try:
            intact = name == WEIGHTS or sha256(file) == digest
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        if not intact:
            raise InputError(
                f"{file} does not match its checksum in {MANIFEST}: it was changed or damaged"
            )
    for name in (GRAPH, WEIGHTS):
        if name not in manifest.files:
            raise InputError(f"{path} names no {name}")
    described = sum(p.size * dtypes.named(p.dtype).storage.itemsize for p in manifest.stored)
    if (folder / WEIGHTS).stat().st_size < described:  # before anybody makes room for them
        raise InputError(
            f"{folder / WEIGHTS} is smaller than the {described} bytes of weights in {MANIFEST}: "
            "it was cut or belongs to another model"
        )
    return Bundle(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, last of a bundle's files: a folder with a manifest is complete."""
    write_text(folder / MANIFEST, manifest.to_json())
