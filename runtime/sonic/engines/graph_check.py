"""Looking into an ONNX graph before ONNX Runtime does: what it computes with, and which files it names.

    check_graph(content, "unet/model.onnx", {"model.onnx.data": 6_402_970_880})

Only the structure is read, as protobuf's wire format has it, so that nothing that a graph may ask for happens
first: no file is opened, no library loaded, no loop started. Refused are operators other than those that the
converter writes, control flow and functions, and weights outside the files that the manifest lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sonic.errors import BundleError

_STANDARD = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvInteger ConvTranspose Cos DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Equal Erf
    Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater
    GreaterOrEqual GridSample GroupNormalization Identity InstanceNormalization LayerNormalization
    LeakyRelu Less LessOrEqual Log MatMul MatMulInteger Max MaxPool Min Mod Mul Neg Not Or PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Shape Sigmoid Sign Sin Slice Softmax
    Softplus SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where
"""
#: By domain. All are arithmetic on tensors: none reads a file, runs other code or repeats others.
OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset({"MultiHeadAttention"}),
}
_SAME_DOMAIN = {"ai.onnx": ""}
#: Far above the largest graph, with 120,000: what a hostile one may cost here is seconds.
_MOST_FIELDS = 2_000_000
_ADVICE = "convert the checkpoint again"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers in onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


class _Malformed(ValueError):
    """A graph that is refused; the message says why."""


def check_graph(content: bytes, source: str, weights: Mapping[str, int]) -> None:
    """Check what a graph computes with, and where its weights are.

    Args:
        content: the serialized model.
        source: its file's name, for the error.
        weights: the files beside it that may hold its weights, by name, with their sizes in bytes.

    Raises:
        BundleError: it is not ONNX, has an operator that no bundle has, or names another file.
    """
    try:
        _Walk(weights).model(memoryview(content))
    except _Malformed as error:
        raise BundleError(f"{source} {error}; {_ADVICE}") from None


class _Walk:
    """One pass through a model."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._left = _MOST_FIELDS

    def model(self, message: memoryview) -> None:
        graphs = 0
        for number, value in self._fields(message):
            if number == _MODEL_GRAPH:
                graphs += 1
                self._graph(value)
            elif number in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
                raise _Malformed("defines functions or training, which no bundle's graph does")
        if graphs != 1:
            raise _Malformed("is no ONNX model with one graph")

    def _graph(self, message: memoryview) -> None:
        for number, value in self._fields(message):
            if number == _GRAPH_NODE:
                self._node(value)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                raise _Malformed("has sparse weights, which no bundle's graph has")

    def _node(self, message: memoryview) -> None:
        names = {_NODE_OPERATOR: "", _NODE_DOMAIN: ""}
        for number, value in self._fields(message):
            if number in names:
                if names[number]:
                    raise _Malformed("has a node with two operators")
                names[number] = _text(value)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(value)
        operator, domain = names[_NODE_OPERATOR], names[_NODE_DOMAIN]
        domain = _SAME_DOMAIN.get(domain, domain)
        if operator not in OPERATORS.get(domain, ()):
            name = f"{domain}.{operator}" if domain else operator
            raise _Malformed(f"has the operator {ascii(name)[:80]}, which no bundle's graph has")

    def _attribute(self, message: memoryview) -> None:
        for number, value in self._fields(message):
            if number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                raise _Malformed("has control flow, which no bundle's graph has")
            if number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                raise _Malformed("has sparse weights, which no bundle's graph has")
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._tensor(value)

    def _tensor(self, message: memoryview) -> None:
        external = {}
        for number, value in self._fields(message):
            if number == _TENSOR_EXTERNAL:
                entry = {key: _text(part) for key, part in self._fields(value)}
                key = entry.get(_ENTRY_KEY, "")
                if key in external:
                    raise _Malformed("states twice where a weight is")
                external[key] = entry.get(_ENTRY_VALUE, "")
        if external:
            self._check_external(external)

    def _check_external(self, external: Mapping[str, str]) -> None:
        location = external.get("location", "")
        if location not in self._weights:
            raise _Malformed(
                f"has weights in {ascii(location)[:120]}, which the manifest does not list for it"
            )
        try:
            offset, length = (int(external.get(key, "0")) for key in ("offset", "length"))
        except ValueError:
            offset = length = -1
        if offset < 0 or length < 0 or offset + length > self._weights[location]:
            raise _Malformed(f"has weights beyond the end of {location}")

    def _fields(self, message: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The fields of a message that have a length, as all have that matter here: number and content."""
        position, end = 0, len(message)
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise _Malformed(f"has more than {_MOST_FIELDS:,} parts, which no bundle's graph has")
            tag, position = _varint(message, position)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:  # what readers make of others differs
                raise _Malformed("is no ONNX model")
            start = position
            if kind == _BYTES:
                length, start = _varint(message, position)
                position = start + length
            elif kind == _VARINT:
                _, position = _varint(message, position)
            elif kind in (_FIXED32, _FIXED64):
                position += 4 if kind == _FIXED32 else 8
            else:
                raise _Malformed("is no ONNX model")
            if position > end:
                raise _Malformed("ends too early")
            if kind == _BYTES:
                yield number, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _Malformed("ends too early")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("is no ONNX model")


def _text(value: memoryview) -> str:
    return bytes(value[:1_000]).decode("utf-8", "backslashreplace")
