"""A face detector made by hand, for synthesized checkpoints.

Random weights find no faces, so this is neither a random network nor YOLOv5-face: it is a fixed
filter that knows only the colour and outline of faces. It looks for an ellipse of skin colour with
less skin to its left, right and above it (below is the neck), and with dark and bright parts where
the two eyes are, at eight sizes. It finds a face that fills its surroundings the way a portrait
does, and it finds hands as well; it is good enough to run the pipeline, not to detect faces in
general.

Its TorchScript interface and its output are YOLOv5-face's (Qi et al., "YOLO5Face: Why Reinventing
a Face Detector", arXiv 2105.12931), with that network's anchors.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

STRIDES_PIXELS = (8, 16, 32)
# YOLOv5-face's anchors: widths and heights in pixels, three for each stride.
ANCHORS_PIXELS = (
    ((4.0, 5.0), (8.0, 10.0), (13.0, 16.0)),
    ((23.0, 29.0), (43.0, 55.0), (73.0, 105.0)),
    ((146.0, 217.0), (231.0, 300.0), (335.0, 433.0)),
)
# Face widths in pixels that the nine anchors look for; each is about 1.42 times the one before. The first
# anchor cannot reach any of them and finds nothing: in fifteen pixels colour alone says too little.
FACE_WIDTHS_PIXELS = ((15.0, 30.0, 44.0), (62.0, 88.0, 124.0), (175.0, 247.0, 348.0))
FACE_WIDTH_MINIMUM_PIXELS = 30.0
FACE_ASPECT = 1.3  # height over width
# Eyes, nose and corners of the mouth, as fractions of the box.
LANDMARKS = (0.3, 0.42, 0.7, 0.42, 0.5, 0.62, 0.34, 0.78, 0.66, 0.78)

CELL_SAMPLES = 4  # each stride's filters see four samples along a grid cell
SURROUND_SIDE = 0.4  # how far the surroundings reach, in face widths
SURROUND_TOP = 0.3  # in face heights
CONTRAST_MINIMUM = 0.5  # skin inside less skin around
CONTRAST_SLOPE = 14.0
DETAIL_MINIMUM = 0.06  # standard deviation of the luminance (0..1) about either eye
DETAIL_SLOPE = 200.0


class SkinFaceDetector(nn.Module):
    """The whole detector; see the module's description."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            FaceLevel(stride, anchors, widths)
            for stride, anchors, widths in zip(
                STRIDES_PIXELS, ANCHORS_PIXELS, FACE_WIDTHS_PIXELS, strict=True
            )
        )

    def forward(self, image: torch.Tensor, grids: list[torch.Tensor]) -> torch.Tensor:
        """(1, 3, H, W) RGB in 0..1 and grids (1, 1, h, w, 2) -> (1, N, 16)."""
        luminance = 0.299 * image[:, 0:1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:3]
        maps = torch.cat([image, luminance, luminance * luminance], dim=1)
        predictions: list[torch.Tensor] = []
        for index, level in enumerate(self.levels):
            maps = functional.avg_pool2d(maps, 2)
            predictions.append(level(maps, grids[index]))
        return torch.cat(predictions, dim=1)


class FaceLevel(nn.Module):
    """Three face sizes at one stride."""

    def __init__(
        self,
        stride: int,
        anchors: tuple[tuple[float, float], ...],
        widths: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.stride = float(stride)
        self.sample = stride / CELL_SAMPLES  # pixels from one sample of the map to the next
        self.contrast_minimum, self.contrast_slope = CONTRAST_MINIMUM, CONTRAST_SLOPE
        self.detail_minimum, self.detail_slope = DETAIL_MINIMUM, DETAIL_SLOPE
        reach = FACE_ASPECT * max(widths) * (0.5 + SURROUND_TOP) / self.sample
        self.padding = math.ceil(reach)
        side = 2 * self.padding + CELL_SAMPLES  # centred on a cell's middle
        templates = [_templates(side, width / self.sample) for width in widths]
        # Filter by filter, each for the three sizes: three channels in a row are one quantity.
        filters = torch.stack([each for same in zip(*templates, strict=True) for each in same])
        skin_channels = 3 * (len(templates[0]) - 2)
        self.skin_filters = nn.Buffer(filters[:skin_channels, None].clone())
        self.detail_filters = nn.Buffer(filters[skin_channels:, None].clone())
        excluded = [20.0 if width < FACE_WIDTH_MINIMUM_PIXELS else 0.0 for width in widths]
        self.excluded = nn.Buffer(torch.tensor(excluded).view(1, 3, 1, 1))
        self.widths = nn.Buffer(torch.tensor(widths).view(1, 3, 1, 1))
        self.aspect = nn.Buffer(torch.tensor([1.0, FACE_ASPECT]))
        self.anchors = nn.Buffer(torch.tensor(anchors).view(1, 3, 1, 1, 2))
        self.landmarks = nn.Buffer(torch.tensor(LANDMARKS).view(1, 1, 1, 1, 10))

    def forward(self, maps: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Maps (1, 5, 4h, 4w) of red, green, blue, luminance and its square; grid (1, 1, h, w, 2).

        Decodes as YOLOv5-face does: (1, 3 h w, 16).
        """
        raw = self.raw(maps)
        scores = torch.sigmoid(raw)
        centre = (scores[..., 0:2] * 2.0 - 0.5 + grid) * self.stride
        size = (scores[..., 2:4] * 2.0) ** 2 * self.anchors
        # Landmarks are offsets in anchors from the cell's corner, without a sigmoid.
        corner = grid * self.stride
        points = raw[..., 5:15] * five_times(self.anchors) + five_times(corner)
        boxes = torch.cat([centre, size, scores[..., 4:5], points, scores[..., 15:16]], dim=-1)
        return boxes.reshape(1, -1, 16)

    def raw(self, maps: torch.Tensor) -> torch.Tensor:
        """What a network's last layer would give, before the decoding: (1, 3, h, w, 16)."""
        smooth = functional.avg_pool2d(maps[:, 0:3], 3, stride=1, padding=1, count_include_pad=False)
        # Zeros around the picture: nothing outside is skin, so even a close-up has an outline.
        found = functional.conv2d(skin_probability(smooth), self.skin_filters, stride=4, padding=self.padding)
        # The side with the most skin counts: a cheek has some next to it, a face has none.
        around = torch.maximum(found[:, 12:15], found[:, 15:18])
        around = torch.maximum(around, found[:, 18:21])
        around = torch.maximum(around, torch.maximum(found[:, 21:24], found[:, 24:27]))
        contrast = found[:, 0:3] - around - self.contrast_minimum
        plain = torch.relu(self.detail_minimum - self.detail(maps))
        confidence = self.contrast_slope * contrast - self.detail_slope * plain - self.excluded
        # The skin's middle and width, from its first two moments across the face.
        amount = found[:, 3:6].clamp(min=1e-3)
        shift = found[:, 6:9] / amount
        variance = (found[:, 9:12] / amount - shift * shift).clamp(min=0.0)
        width = torch.sqrt(12.0 * variance) * self.sample  # as if it were uniform
        width = torch.minimum(torch.maximum(width, 0.75 * self.widths), 1.3 * self.widths)
        shift = (shift * self.sample).clamp(-0.9 * self.stride, 0.9 * self.stride)

        size = width.unsqueeze(-1) * self.aspect
        middle = torch.stack([shift, torch.zeros_like(shift)], dim=-1) + 0.5 * self.stride
        points = five_times(middle - 0.5 * size) + self.landmarks * five_times(size)
        return torch.cat(
            [
                inverse_sigmoid((middle / self.stride + 0.5) / 2.0),
                inverse_sigmoid(torch.sqrt(size / self.anchors) / 2.0),
                confidence.unsqueeze(-1),
                points / five_times(self.anchors),
                torch.zeros_like(confidence).unsqueeze(-1) + 8.0,  # certainly the one class
            ],
            dim=-1,
        )

    def detail(self, maps: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the luminance about each eye, the lesser: (1, 3, h, w)."""
        inside = torch.ones_like(maps[:, 3:4])
        values = torch.cat([maps[:, 3:4], maps[:, 4:5], inside], dim=0)
        sums = functional.conv2d(values, self.detail_filters, stride=4, padding=self.padding)
        covered = sums[2:3].clamp(min=1e-3)  # less than one at the picture's border
        mean = sums[0:1] / covered
        deviation = torch.sqrt((sums[1:2] / covered - mean * mean).clamp(min=1e-8))
        return torch.minimum(deviation[:, 0:3], deviation[:, 3:6])


def five_times(pairs: torch.Tensor) -> torch.Tensor:
    """(..., 2) -> (..., 10), one pair for each landmark."""
    return torch.cat([pairs, pairs, pairs, pairs, pairs], dim=-1)


def inverse_sigmoid(values: torch.Tensor) -> torch.Tensor:
    """The logit of values that are kept within 0.01..0.99."""
    kept = values.clamp(0.01, 0.99)
    return torch.log(kept / (1.0 - kept))


def _templates(side: int, width: float) -> tuple[torch.Tensor, ...]:
    """Filters (side, side) for a face `width` samples wide.

    The face; a band across it with its first and second moment; the left, the right, the top and
    both lower corners of the face's surroundings; where either eye is.
    """
    height = width * FACE_ASPECT
    axis = torch.arange(side) + 0.5 - side / 2
    x, y = axis[None, :].expand(side, side), axis[:, None].expand(side, side)
    distance = (2 * x / width) ** 2 + (2 * y / height) ** 2
    face = _normalised((distance < 1) & (y > -0.3 * height))  # above it there may be hair
    band = _normalised((x.abs() < 0.75 * width) & (y.abs() < 0.25 * height))
    beside = (distance > 1.2) & (y.abs() < 0.3 * height)
    left = _normalised(beside & (x < 0) & (x > -width * (0.5 + SURROUND_SIDE)))
    right = _normalised(beside & (x > 0) & (x < width * (0.5 + SURROUND_SIDE)))
    above = (x.abs() < 0.4 * width) & (y < 0) & (y > -height * (0.5 + SURROUND_TOP))
    top = _normalised(above & (distance > 1.2))
    jaw = (distance > 1.1) & (y > 0.25 * height) & (y < 0.5 * height) & (x.abs() > 0.3 * width)
    jaw_left = _normalised(jaw & (x < 0) & (x > -0.6 * width))
    jaw_right = _normalised(jaw & (x > 0) & (x < 0.6 * width))
    level = (y > -0.36 * height) & (y < 0.2 * height)
    eye_left = _normalised(level & (x > -0.38 * width) & (x < 0))
    eye_right = _normalised(level & (x > 0) & (x < 0.38 * width))
    around = (left, right, top, jaw_left, jaw_right)
    return face, band, band * x, band * x * x, *around, eye_left, eye_right


def _normalised(region: torch.Tensor) -> torch.Tensor:
    return region.float() / region.sum().clamp(min=1)


def skin_probability(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, h, w) RGB in 0..1 -> (1, 1, h, w).

    Soft edges within the range Cr 133..173, Cb 77..127 (8 bit) of Chai and Ngan, "Face segmentation
    using skin-color map in videophone applications", 1999 (Cr from 140, because brown hair lies
    below it), and a least luminance.
    """
    red, green, blue = image[:, 0:1] * 255.0, image[:, 1:2] * 255.0, image[:, 2:3] * 255.0
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    cr = 128.0 + 0.5 * red - 0.4187 * green - 0.0813 * blue
    cb = 128.0 - 0.1687 * red - 0.3313 * green + 0.5 * blue
    return (
        torch.sigmoid((cr - 140.5) / 1.5)
        * torch.sigmoid((173.0 - cr) / 3.0)
        * torch.sigmoid((cb - 77.0) / 3.0)
        * torch.sigmoid((125.0 - cb) / 2.0)
        * torch.sigmoid((luminance - 42.0) / 5.0)
    )


def write_face_detector(path: Path) -> None:
    """Save the detector as a TorchScript archive, the kind of file upstream loads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scripted = Path(folder) / path.name  # the name becomes the folder inside the archive
        torch.jit.save(torch.jit.script(SkinFaceDetector().eval()), str(scripted))
        copy_archive(scripted, path)


def copy_archive(source: Path, target: Path) -> None:
    """Compress the filters, which are mostly zeros, and leave the debugging records out.

    Those hold this module's path and a checksum of it: different bytes on every machine.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith((".debug_pkl", "serialization_id")):
                copied = zipfile.ZipInfo(entry.filename)  # always dated 1980
                new.writestr(copied, old.read(entry), compress_type=zipfile.ZIP_DEFLATED)
