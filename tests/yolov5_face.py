"""YOLOv5-face's architecture with random weights, built from its public description.

Qi et al., "YOLO5Face: Why Reinventing a Face Detector" (arXiv 2105.12931), and YOLOv5m-face's table of
layers: a stem without focus, four stages of cross-stage blocks, a spatial pyramid of pools of 3, 5 and 7, a
path aggregation network with nearest upsampling, three heads of 48 channels (box, confidence, five landmarks,
class). As in the archive that Sonic loads, the grids are an argument, a list.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

ANCHORS_PIXELS = (
    ((4.0, 5.0), (8.0, 10.0), (13.0, 16.0)),
    ((23.0, 29.0), (43.0, 55.0), (73.0, 105.0)),
    ((146.0, 217.0), (231.0, 300.0), (335.0, 433.0)),
)
STRIDES_PIXELS = (8, 16, 32)


class Unit(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(values)))


class Stem(nn.Module):
    """A quarter of the picture's size: a strided convolution, then two ways down beside each other."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = Unit(3, outputs, 3, 2)
        self.squeeze = Unit(outputs, outputs // 2)
        self.strided = Unit(outputs // 2, outputs, 3, 2)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.join = Unit(2 * outputs, outputs)

    def forward(self, image: Tensor) -> Tensor:
        half = self.first(image)
        return self.join(torch.cat((self.strided(self.squeeze(half)), self.pool(half)), 1))


class Residual(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution."""

    def __init__(self, channels: int, adds: bool) -> None:
        super().__init__()
        self.narrow, self.wide, self.adds = Unit(channels, channels), Unit(channels, channels, 3), adds

    def forward(self, values: Tensor) -> Tensor:
        found = self.wide(self.narrow(values))
        return values + found if self.adds else found


class CrossStage(nn.Module):
    """C3: half of the channels through residual blocks, half past them, in three convolutions."""

    def __init__(self, inputs: int, outputs: int, blocks: int, adds: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.through, self.past, self.join = Unit(inputs, half), Unit(inputs, half), Unit(2 * half, outputs)
        self.blocks = nn.Sequential(*(Residual(half, adds) for _ in range(blocks)))

    def forward(self, values: Tensor) -> Tensor:
        return self.join(torch.cat((self.blocks(self.through(values)), self.past(values)), dim=1))


class PyramidPool(nn.Module):
    """SPP with pools of 3, 5 and 7."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = Unit(inputs, inputs // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (3, 5, 7))
        self.join = Unit(4 * (inputs // 2), outputs)

    def forward(self, values: Tensor) -> Tensor:
        narrow = self.narrow(values)
        levels = [narrow]
        for pool in self.pools:
            levels.append(pool(narrow))
        return self.join(torch.cat(levels, 1))


class Heads(nn.Module):
    """Decodes three levels: boxes, confidence, landmarks and the class."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(each, 3 * 16, 1) for each in channels)
        self.register_buffer("anchors", torch.tensor(ANCHORS_PIXELS).view(3, 1, 3, 1, 1, 2))
        self.by_list = False
        self.register_buffer("strides", torch.tensor(STRIDES_PIXELS, dtype=torch.float32))

    def forward(self, levels: list[Tensor], grids: list[Tensor]) -> Tensor:
        found: list[Tensor] = []
        for index, conv in enumerate(self.convs):
            raw = conv(levels[index])
            batch, _, rows, columns = raw.shape
            raw = raw.view(batch, 3, 16, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            grid, stride, anchors = grids[index], self.strides[index], self.anchors[index]
            decoded = torch.full_like(raw, 0)
            if not torch.jit.is_scripting() and self.by_list:
                # As the published training code does it: traced, this fixes the picture's size.
                decoded[..., [0, 1, 2, 3, 4, 15]] = raw[..., [0, 1, 2, 3, 4, 15]].sigmoid()
            else:
                decoded[..., 0:5] = raw[..., 0:5].sigmoid()
                decoded[..., 15:16] = raw[..., 15:16].sigmoid()
            decoded[..., 5:15] = raw[..., 5:15]
            decoded[..., 0:2] = (decoded[..., 0:2] * 2.0 - 0.5 + grid) * stride
            decoded[..., 2:4] = (decoded[..., 2:4] * 2) ** 2 * anchors
            for first in range(5, 15, 2):
                point = decoded[..., first : first + 2]
                decoded[..., first : first + 2] = point * anchors + grid * stride
            found.append(decoded.view(batch, -1, 16))
        return torch.cat(found, 1)


class YoloFace(nn.Module):
    """The whole detector; depth 0.67 and width 0.75 are YOLOv5m-face."""

    def __init__(self, depth: float = 0.67, width: float = 0.75) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024 = (int(8 * -(-width * each // 8)) for each in (64, 128, 256, 512, 1024))
        three, nine = max(round(3 * depth), 1), max(round(9 * depth), 1)
        self.stem = Stem(c64)
        self.stage_4 = CrossStage(c64, c128, three)
        self.down_8, self.stage_8 = Unit(c128, c256, 3, 2), CrossStage(c256, c256, nine)
        self.down_16, self.stage_16 = Unit(c256, c512, 3, 2), CrossStage(c512, c512, nine)
        self.down_32, self.pools = Unit(c512, c1024, 3, 2), PyramidPool(c1024, c1024)
        self.stage_32 = CrossStage(c1024, c1024, three, False)
        self.up = nn.Upsample(None, 2, "nearest")
        self.to_16, self.merge_16 = Unit(c1024, c512), CrossStage(2 * c512, c512, three, False)
        self.to_8, self.merge_8 = Unit(c512, c256), CrossStage(2 * c256, c256, three, False)
        self.back_16, self.out_16 = Unit(c256, c256, 3, 2), CrossStage(2 * c256, c512, three, False)
        self.back_32, self.out_32 = Unit(c512, c512, 3, 2), CrossStage(2 * c512, c1024, three, False)
        self.heads = Heads((c256, c512, c1024))

    def forward(self, image: Tensor, grids: list[Tensor]) -> Tensor:
        """(1, 3, H, W) RGB in 0..1 and grids (1, 1, H / s, W / s, 2) -> (1, N, 16)."""
        level_8 = self.stage_8(self.down_8(self.stage_4(self.stem(image))))
        level_16 = self.stage_16(self.down_16(level_8))
        narrow_32 = self.to_16(self.stage_32(self.pools(self.down_32(level_16))))
        narrow_16 = self.to_8(self.merge_16(torch.cat([self.up(narrow_32), level_16], 1)))
        out_8 = self.merge_8(torch.cat([self.up(narrow_16), level_8], 1))
        out_16 = self.out_16(torch.cat([self.back_16(out_8), narrow_16], 1))
        out_32 = self.out_32(torch.cat([self.back_32(out_16), narrow_32], 1))
        return self.heads([out_8, out_16, out_32], grids)


def random_yolo_face(depth: float = 0.67, width: float = 0.75, seed: int = 0) -> YoloFace:
    """The detector with random weights and batch statistics that keep values near 1."""
    torch.manual_seed(seed)
    network = YoloFace(depth, width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
    return network.eval()


def cell_grids(height: int, width: int) -> list[Tensor]:
    """The positions of the cells of three levels, each (1, 1, h, w, 2)."""
    grids = []
    for stride in STRIDES_PIXELS:
        y, x = torch.meshgrid(
            torch.arange(height // stride).float(), torch.arange(width // stride).float(), indexing="ij"
        )
        grids.append(torch.stack([x, y], dim=-1)[None, None])
    return grids


def save_traced(network: nn.Module, path: Path) -> Path:
    """Trace the network and save it, as the published archive was made."""
    with torch.no_grad():
        example = (torch.rand(1, 3, 128, 160), cell_grids(128, 160))
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), str(path))
    return path


def save_scripted(network: nn.Module, path: Path) -> Path:
    """Compile the network's Python and save it."""
    torch.jit.save(torch.jit.script(network), str(path))
    return path


def as_saved_by_1_8(path: Path) -> Path:
    """Rewrite an archive to what PyTorch 1.8 writes of the same network, in place.

    Its archives have neither a byte order nor a `.data` folder, `full_like` came without the arguments that
    were not given, and code from before 1.5 computed the sizes of nearest upsampling.
    """
    text = path.with_suffix(".1.8")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(text, "w") as new:
        for entry in old.infolist():
            name = entry.filename
            if "/.data/" in name or name.endswith(
                ("/byteorder", ".debug_pkl", "/.format_version", "/.storage_alignment")
            ):
                continue
            content = old.read(entry)
            if name.endswith("/version"):
                content = b"3\n"
            elif name.endswith(".py"):
                content = _code_of_1_8(content.decode()).encode()
            new.writestr(name, content)
    text.replace(path)
    return path


def _code_of_1_8(code: str) -> str:
    code = re.sub(r", dtype=None, layout=None, device=None, pin_memory=(None|False)\)", ")", code)
    code = re.sub(r"torch\.upsample_nearest2d\((\w+), None, \[2\., 2\.\]\)", _UPSAMPLED, code)
    return code


# Before scale factors were given to the operator, the size was computed: as traced by older versions.
_UPSAMPLED = (
    r"torch.upsample_nearest2d(\1, [int(torch.floor(torch.mul(float(torch.size(\1, 2)), 2.))), "
    r"int(torch.floor(torch.mul(float(torch.size(\1, 3)), 2.)))], None, None)"
)
