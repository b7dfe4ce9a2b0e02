"""Bundles that an attacker could hand in; each row's folder starts with a copy of the packaged sonic-tiny."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from security.hostile import HostileInput

from sonic.bundle.manifest import MANIFEST_NAME
from sonic.bundle.manifest_file import manifest_text
from sonic.bundle.store import PACKAGED_BUNDLES

Change = Callable[[Path], object]
Values = dict[str, Any]
#: The one that `sonic verify` opens first.
GRAPH = "audio_encoder/model.onnx"


def copied(folder: Path) -> Path:
    """A copy of sonic-tiny that may be changed."""
    return Path(shutil.copytree(PACKAGED_BUNDLES / "sonic-tiny", folder / "bundle"))


def reseal(bundle: Path, change: Callable[[Values], object] = lambda values: None) -> None:
    """Give changed files and a changed manifest the right digests, as whoever makes a bundle can."""
    values = json.loads((bundle / MANIFEST_NAME).read_text())
    for file in listed_files(values):
        content = (bundle / file["path"]).read_bytes() if (bundle / file["path"]).is_file() else b""
        file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(values)
    (bundle / MANIFEST_NAME).write_text(manifest_text(values))


def listed_files(values: Values) -> list[Values]:
    """The entries of a manifest's files."""
    golden = values["verification"]
    return [
        *(file for submodel in values["submodels"] for file in submodel["files"]),
        *values["assets"].values(),
        *(one["file"] for one in golden["submodels"].values()),
        *(golden["clip"][name] for name in ("portrait", "speech", "expected")),
    ]


def change_graph(bundle: Path, change: Callable[[onnx.ModelProto], object], path: str = GRAPH) -> None:
    """Change a graph; its digest is right again."""
    model = onnx.load(bundle / path)
    change(model)
    (bundle / path).write_bytes(model.SerializeToString())
    reseal(bundle)


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    """Move the first weight to another file."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        size = len(numpy_helper.to_array(tensor).tobytes())
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)

    return change


def add_node(operator: str, domain: str, model: onnx.ModelProto) -> None:
    """Add a node with this operator."""
    model.graph.node.append(
        helper.make_node(operator, [model.graph.input[0].name], ["unused"], domain=domain)
    )


def endless_loop(model: onnx.ModelProto) -> None:
    """Add a loop that never ends."""
    boolean = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    inner = [
        helper.make_tensor_value_info("index", TensorProto.INT64, []),
        helper.make_tensor_value_info("given", TensorProto.BOOL, []),
    ]
    body = helper.make_graph([helper.make_node("Identity", ["given"], ["on"])], "body", inner, [boolean])
    always = numpy_helper.from_array(np.array(True), "always")
    model.graph.initializer.append(always)
    model.graph.node.append(helper.make_node("Loop", ["", "always"], [], body=body))


def define_function(model: onnx.ModelProto) -> None:
    """Define a function."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    made = helper.make_function("local", "Own", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])
    model.functions.append(made)


def fill_weights(value: float, model: onnx.ModelProto) -> None:
    """Set the largest weight to one value."""
    tensor = max(model.graph.initializer, key=lambda one: np.prod(one.dims, dtype=int))
    array = np.full(tensor.dims, value, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def flip(bundle: Path, path: str, position: int = -100) -> None:
    """Change one bit of a file."""
    content = bytearray((bundle / path).read_bytes())
    content[position] ^= 1
    (bundle / path).write_bytes(content)


def replaced_with(bundle: Path, path: str, make: Callable[[Path], object]) -> None:
    """Put something else in a file's place."""
    (bundle / path).unlink()
    make(bundle / path)


def with_constant(part: str, name: str, value: object) -> Change:
    """Change a constant; the manifest's digest is right again."""
    return partial(reseal, change=lambda values: values["constants"][part].update({name: value}))


def with_file(path: str, content: bytes) -> Change:
    """Replace a file's content; its digest is right again."""

    def change(bundle: Path) -> None:
        (bundle / path).write_bytes(content)
        reseal(bundle)

    return change


def npy(header: str, content: bytes = b"") -> bytes:
    """A file in NumPy's format with any header."""
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + content


def zip_bomb() -> bytes:
    """An archive of a few kilobytes that unpacks to gigabytes."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("noise.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(1 << 10):
            file.write(bytes(1 << 20))
    return content.getvalue()


def compiled(bundle: Path) -> None:
    """Say that the bundle is compiled; nobody has signed it."""
    target = {"name": "any", "triple": "aarch64-linux-gnu", "processor": "generic", "features": []}
    reseal(bundle, lambda values: values.update(engine="tvm", machine_code=True, target=target))


def verified(change: Change, *more: str) -> Callable[[Path], Sequence[str]]:
    """`sonic verify` of a changed bundle."""

    def command(folder: Path) -> Sequence[str]:
        bundle = copied(folder)
        change(bundle)
        return ["sonic", "verify", str(bundle), *(part.format(folder=folder) for part in more)]

    return command


def generated(change: Change) -> Callable[[Path], Sequence[str]]:
    """`sonic generate` with a changed bundle, from its own golden clip."""

    def command(folder: Path) -> Sequence[str]:
        bundle = copied(folder)
        inputs = [
            Path(shutil.copy(bundle / "golden" / name, folder)) for name in ("portrait.png", "speech.wav")
        ]
        change(bundle)
        return [
            "sonic", "generate", "--bundle", str(bundle), "--image", str(inputs[0]),
            "--audio", str(inputs[1]), "--output", str(folder / "video.mp4"), "--resolution", "64",
            "--duration", "0.3", "--steps", "1",
        ]  # fmt: skip

    return command


def _row(name: str, change: Change, sentence: str, run: Any = verified, *more: str) -> HostileInput:
    return HostileInput(name, "bundle", run(change, *more), sentence)


def _graph(name: str, change: Callable[[onnx.ModelProto], object], sentence: str) -> HostileInput:
    return _row(name, partial(change_graph, change=change), sentence)


def _link_folder(bundle: Path) -> None:
    (bundle / "unet").rename(bundle.parent / "outside")
    (bundle / "unet").symlink_to("../outside")


def _swap_graphs(bundle: Path) -> None:
    shutil.copy(bundle / "audio2token/model.onnx", bundle / "vae_decoder/model.onnx")
    reseal(bundle)


def _public_key(path: Path) -> None:
    path.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


def _junk_signature(bundle: Path) -> None:
    (bundle / "model.sig").write_text(json.dumps({"verificationMaterial": {}, "dsseEnvelope": []}))
    _public_key(bundle.parent / "key.pem")


def _path_entry(path: str) -> Change:
    return partial(reseal, change=lambda values: values["submodels"][0]["files"][0].update(path=path))


ROWS: list[HostileInput] = [
    # Files
    _row(
        "a graph that is a link to a file outside",
        lambda bundle: replaced_with(bundle, GRAPH, lambda path: path.symlink_to("/etc/passwd")),
        r"audio_encoder/model\.onnx is a symbolic link",
    ),
    _row("a submodel's folder that is a link", _link_folder, r"bundle/unet is a symbolic link"),
    _row(
        "a manifest that lists ../../etc/passwd", _path_entry("../../etc/passwd"), "points outside the folder"
    ),
    _row("a manifest that lists /etc/passwd", _path_entry("/etc/passwd"), "points outside the folder"),
    _row(
        "a named pipe in a bundle",
        lambda bundle: os.mkfifo(bundle / "unet/pipe"),
        r"unet/pipe is no regular file, but a pipe",
    ),
    _row(
        "a graph that is a named pipe",
        lambda bundle: replaced_with(bundle, GRAPH, os.mkfifo),
        r"audio_encoder/model\.onnx is no regular file, but a pipe",
    ),
    _row(
        "a second manifest below a submodel",
        lambda bundle: shutil.copy(bundle / MANIFEST_NAME, bundle / "unet"),
        r"the file unet/manifest\.json is not in the manifest",
    ),
    _row("one changed bit in a graph", lambda bundle: flip(bundle, GRAPH), r"model\.onnx was changed"),
    _row(
        "one changed bit in a golden picture",
        lambda bundle: flip(bundle, "golden/portrait.png"),
        r"golden/portrait\.png was changed",
    ),
    # The manifest
    _row(
        "a manifest that is a named pipe",
        lambda bundle: replaced_with(bundle, MANIFEST_NAME, os.mkfifo),
        r"manifest\.json cannot be opened \(it is a named pipe, not a regular file\)",
    ),
    _row(
        "a manifest that is a link to /dev/zero",
        lambda bundle: replaced_with(bundle, MANIFEST_NAME, lambda path: path.symlink_to("/dev/zero")),
        r"manifest\.json cannot be opened \(it is a symbolic link\)",
    ),
    _row(
        "a manifest of 100 MB",
        lambda bundle: (bundle / MANIFEST_NAME).write_bytes(b"[" + b"0," * 50_000_000 + b"0]"),
        "is larger than 4,194,304 bytes",
    ),
    _row(
        "a manifest nested 100,000 deep",
        lambda bundle: (bundle / MANIFEST_NAME).write_text("[" * 100_000 + "]" * 100_000),
        "nested deeper than 32 levels",
    ),
    _row(
        "one changed bit in a manifest", lambda bundle: flip(bundle, MANIFEST_NAME, -30), "was changed since"
    ),
    _row(
        "a manifest with Infinity as a number of steps",
        with_constant("sampler", "steps", float("inf")),
        "Infinity",
    ),
    _row(
        "a manifest with windows of 10^12 samples",
        with_constant("audio", "window_samples", 10**12),
        "window_samples' is 1000000000000, but should be less than or equal to 4800000",
    ),
    _row(
        "a manifest with a number of 5,000 digits",
        lambda bundle: (bundle / MANIFEST_NAME).write_text('{"schema_version": ' + "9" * 5_000 + "}"),
        "manifest.json cannot be read",
    ),
    _row(
        "a manifest whose name holds terminal commands",
        partial(reseal, change=lambda values: values.update(name="\x1b]0;owned\x07")),
        "characters that cannot be printed",
    ),
    # Graphs whose digests are right
    _graph("weights in /etc/passwd", external("/etc/passwd"), "has weights in '/etc/passwd'"),
    _graph("weights in ../../secret", external("../../secret"), r"has weights in '\.\./\.\./secret'"),
    _graph(
        "weights at an address of ONNX Runtime's memory", external("*/_ORT_MEM_ADDR_/*"), "has weights in"
    ),
    _graph(
        "an operator of a custom library",
        partial(add_node, "Run", "evil.ops"),
        r"the operator 'evil\.ops\.Run'",
    ),
    _graph(
        "an operator that loads other files", partial(add_node, "EPContext", "com.microsoft"), "EPContext"
    ),
    _graph("an endless loop", endless_loop, "audio_encoder/model.onnx has control flow"),
    _graph("a function of its own", define_function, "defines functions"),
    _row("another submodel's graph", _swap_graphs, "'vae_decoder' does not run on its golden inputs"),
    _row(
        "a graph of random bytes", with_file(GRAPH, bytes(range(256)) * 64), "is no ONNX model|ends too early"
    ),
    _row(
        "NaN as weights of the decoder",
        lambda bundle: change_graph(bundle, partial(fill_weights, np.nan), "vae_decoder/model.onnx"),
        "'vae_decoder' returned values that are not finite",
        generated,
    ),
    _row(
        "NaN as weights of the frame interpolator",
        lambda bundle: change_graph(bundle, partial(fill_weights, np.nan), "frame_interpolator/model.onnx"),
        "'frame_interpolator' returned values that are not finite",
        generated,
    ),
    # Arrays whose digests are right
    _row(
        "mel filters whose header states terabytes",
        with_file(
            "mel_filters.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 80)}")
        ),
        r"mel_filters\.npy cannot be read as a NumPy array",
        generated,
    ),
    _row(
        "mel filters that are a pickle",
        with_file("mel_filters.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\n")),
        r"mel_filters\.npy cannot be read as a NumPy array",
        generated,
    ),
    _row(
        "mel filters of another size",
        with_file(
            "mel_filters.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}", bytes(16))
        ),
        r"mel filters|mel_filters",
        generated,
    ),
    _row(
        "golden vectors that unpack to gigabytes",
        with_file("golden/clip.npz", zip_bomb()),
        r"golden/clip\.npz cannot be read as golden vectors \(it holds more than",
    ),
    # Trust
    _row(
        "a compiled bundle that nobody signed",
        compiled,
        "holds machine code, and no trusted key has signed it",
    ),
    _row(
        "a compiled bundle that says it holds no code",
        partial(reseal, change=lambda values: values.update(engine="tvm", machine_code=False)),
        "'machine_code' should be true",
    ),
    _row(
        "a signature that is junk",
        _junk_signature,
        "is no signature of this bundle|cannot be used|need the packages model-signing",
        verified,
        "--key={folder}/key.pem",
    ),
]
