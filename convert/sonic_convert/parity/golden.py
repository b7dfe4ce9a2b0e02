"""Golden vectors: what PyTorch computes for one short clip, stored in the bundle for ``sonic verify``.

When a checkpoint is converted, the finished graphs generate a clip of a third of a second from the drawn
portrait and the recording that come with this package, small (two of the portrait's size multiples: 128
pixels) and in few steps of the published sampler. The middle call of every submodel is kept (of the UNet's,
the middle one that hears the speech), with the output that PyTorch's published forward gives for its inputs;
then PyTorch generates the whole clip from the same noise. A target server repeats both without PyTorch
(:mod:`sonic.verification.verify`). The face box is given, not detected: a mask's edges are whole pixels, so
that the last bits of a detected box could decide where one lies.

How far a bundle may be from PyTorch:

- Full precision: a relative L2 difference of twice the table's tolerance (`CPU_MARGIN`). On the machine that
  makes the bundle the difference has to be within the table's 1e-4. Typical differences are 1e-6, and
  processors with different vector widths, which sum in a different order, differ from each other by as much.
  The clip needs the 50 dB of the parity report.
- Submodels of another precision: 1.5 times the difference measured when they were made (`ROUNDING_MARGIN`),
  plus the tolerance of full precision. Rounding errors are nearly the same everywhere, but where the last
  bits differ, a value halfway between two integers or float16 numbers is rounded the other way. The clip may
  lose 3 dB, which allows for the same, and never needs more than 50 dB.

Submodels that a bundle of another precision shares with the one it was made from keep their tolerance, and
the golden files are the same in all precisions: the reference is always PyTorch in float32.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import wave
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from sonic.bundle.bundle import Bundle
from sonic.bundle.constants import Constants
from sonic.bundle.manifest import GoldenClip, GoldenSubmodel, Manifest, VerificationInfo
from sonic.bundle.presets import BRANCH_SETS
from sonic.bundle.store import file_info, sha256_of
from sonic.diffusion.noise import draw_noise
from sonic.engines.registry import make_engine
from sonic.engines.watched import Call, WatchedEngine
from sonic.errors import InputError
from sonic.media.face import Face, detect_faces
from sonic.media.portrait import load_portrait, portrait_from_picture
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.prepared_clip import ClipRequest
from sonic.progress import Progress
from sonic.verification.compare import compare
from sonic.verification.golden import ExpectedClip, ExpectedOutput, GoldenVectors
from sonic.verification.verify import generate_clip, measure_clip, measure_submodel, verification_info
from sonic_calibration.recording.recorder import Recorder
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export import stages
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.export.submodels import SUBMODELS, find_submodel
from sonic_convert.parity.parity import MINIMUM_PSNR_DB, published_output
from sonic_convert.parity.reference import TorchReference

FOLDER = "golden"
GOLDEN_VERSION = 2  # raise it when a change of this module changes what it writes
FRAMES = 4  # before interpolation
STEPS = 3  # two would have only the largest and the smallest noise level, and most of the work is in between
CPU_MARGIN = 2.0
ROUNDING_MARGIN = 1.5
PSNR_MARGIN_DB = 3.0
_ASSETS = Path(__file__).parents[1] / "assets"
_PORTRAIT, _SPEECH = _ASSETS / "portrait.png", _ASSETS / "speech.wav"
_FACE_BOX = (169.0, 146.0, 471.0, 490.0)  # by `demo_portrait.face_box`
_ALL_CALLS = 1 << 16


@dataclass(frozen=True, eq=False)
class _Clip:
    """The inputs of the clip, for both the bundle and PyTorch.

    Attributes:
        portrait, speech: files.
        options: without open values.
        face_mask: (1, 1, H, W) float32.
        noise: (generated frames, 4, h, w) float32.
    """

    portrait: Path
    speech: Path
    options: GenerationOptions
    face_mask: np.ndarray
    noise: np.ndarray


def make_golden(
    checkpoint: Checkpoint, bundle: Bundle, folder: Path, key: Sequence[str], progress: Progress
) -> VerificationInfo:
    """Make the golden files, as a stage of a conversion: in `folder`, under their paths in the bundle.

    The bundle's graphs and PyTorch's networks are loaded one after another.

    Args:
        checkpoint: what the bundle was made from.
        bundle: the full-precision graphs.
        folder: the stage's.
        key: digests of everything that the graphs were made from.
        progress: shows what runs.

    Raises:
        InputError: a submodel or the clip differs from PyTorch's, or there is too little memory.
    """

    def produce(target: Path) -> dict[str, Any]:
        (target / FOLDER).mkdir()
        clip = _prepare_clip(checkpoint.constants, target / FOLDER)
        frames, calls = _record(bundle, clip, checkpoint, progress)
        submodels = _SubmodelFiles(calls, clip.face_mask, target)
        reference = TorchReference(checkpoint, submodels.write)
        result = reference.generate(
            clip.portrait, clip.speech, clip.options, clip.noise, progress, _known_face
        )
        for submodel in SUBMODELS:
            if submodel.name not in submodels.written:  # the face detector, as the clip's face is given
                with reference.network(submodel.name):
                    pass
        psnr = measure_clip(bundle, frames, result.interpolated)
        if not psnr >= MINIMUM_PSNR_DB:
            raise InputError(
                f"a clip of the exported submodels differs from PyTorch's (PSNR {psnr:.1f} dB, at least "
                f"{MINIMUM_PSNR_DB:g} are expected); report this with the checkpoint's config.json files"
            )
        expected = target / FOLDER / "clip.npz"
        ExpectedClip(clip.noise, result.interpolated).save(expected)
        assert clip.options.min_resolution is not None and clip.options.inference_steps is not None
        golden_clip = GoldenClip(
            portrait=file_info(clip.portrait, target),
            speech=file_info(clip.speech, target),
            expected=file_info(expected, target),
            face_box=_FACE_BOX,
            resolution_pixels=clip.options.min_resolution,
            steps=clip.options.inference_steps,
            psnr_db=_rounded(psnr),
            minimum_psnr_db=MINIMUM_PSNR_DB,
        )
        return VerificationInfo(submodels.written, golden_clip).to_json()

    settings = [str(value) for value in (GOLDEN_VERSION, FRAMES, STEPS, _FACE_BOX, CPU_MARGIN)]
    tolerances = json.dumps({submodel.name: submodel.tolerance for submodel in SUBMODELS})
    read = [
        *key, json.dumps(asdict(checkpoint.constants)), sha256_of(_PORTRAIT), sha256_of(_SPEECH),
        *settings, tolerances, torch.__version__, onnxruntime.__version__,
    ]  # fmt: skip
    return VerificationInfo.from_json(stages.run_stage(folder, read, produce).facts, str(folder))


def measure_reduced(bundle: Bundle, source: Manifest, folder: Path, progress: Progress) -> VerificationInfo:
    """Measure what a bundle of another precision is to be verified with, as a stage of its making.

    Args:
        bundle: the new graphs, with the source's golden files.
        source: the full-precision bundle's manifest.
        folder: the stage's.
        progress: shows what runs.

    Returns:
        The source's golden files with this bundle's tolerances.

    Raises:
        InputError: a submodel returns values that are not finite, or there is too little memory.
        BundleError: the UNet returns such values in the clip.
    """
    info = verification_info(bundle)
    submodels = bundle.manifest.submodels
    changed = [name for name in info.submodels if submodels[name].files != source.submodels[name].files]
    if not changed:
        return info

    def produce(target: Path) -> dict[str, Any]:
        model = _model(bundle)
        distances = {}
        with progress.stage("golden vectors", len(changed)) as advance:
            for name in changed:
                vectors = GoldenVectors.load(bundle.directory / info.submodels[name].file.path)
                _, distances[name] = measure_submodel(model.engine, name, vectors)
                if not math.isfinite(distances[name]):
                    raise InputError(
                        f"'{name}' returns values that are not finite in the precision "
                        f"{submodels[name].precision}; choose another for it"
                    )
                advance()
        expected = ExpectedClip.load(bundle.directory / info.clip.expected.path)
        frames = generate_clip(model, info.clip, expected.noise, progress)
        return {"relative_l2": distances, "psnr_db": measure_clip(bundle, frames, expected.frames)}

    read = [f"{file.path} {file.sha256}" for file in bundle.manifest.files]
    digest = hashlib.sha256("\n".join(read).encode()).hexdigest()
    facts = stages.run_stage(
        folder, [digest, *changed, str(GOLDEN_VERSION), onnxruntime.__version__], produce
    ).facts
    reduced = {
        name: _reduced(golden, facts["relative_l2"][name]) if name in changed else golden
        for name, golden in info.submodels.items()
    }
    psnr = facts["psnr_db"]
    minimum = min(info.clip.minimum_psnr_db, _rounded(psnr - PSNR_MARGIN_DB))
    return VerificationInfo(reduced, replace(info.clip, psnr_db=_rounded(psnr), minimum_psnr_db=minimum))


def _reduced(golden: GoldenSubmodel, relative_l2: float) -> GoldenSubmodel:
    tolerance = ROUNDING_MARGIN * relative_l2 + golden.tolerance
    return replace(golden, relative_l2=_rounded(relative_l2), tolerance=_rounded(tolerance))


def _prepare_clip(constants: Constants, folder: Path) -> _Clip:
    """Write the clip's input files to a folder."""
    path, speech = folder / "portrait.png", folder / "speech.wav"
    shutil.copyfile(_PORTRAIT, path)
    _write_speech(speech, constants)
    portrait, video = constants.portrait, constants.video
    size = min(portrait.default_resolution_pixels, 2 * portrait.size_multiple_pixels)
    options = GenerationOptions(min_resolution=size, inference_steps=STEPS).resolved(constants)
    prepared = portrait_from_picture(load_portrait(path), path.name, _known_face, options, portrait)
    height, width = (side // video.latent_stride_pixels for side in (prepared.height, prepared.width))
    noise = draw_noise(constants.sampler.seed, FRAMES, video.latent_channels, height, width)
    return _Clip(path, speech, options, prepared.face_mask, noise)


def _write_speech(path: Path, constants: Constants) -> None:
    """Write the beginning of the recording, as long as the clip."""
    with wave.open(str(_SPEECH)) as file:
        seconds = FRAMES * constants.audio.samples_per_frame / constants.audio.sample_rate_hz
        parameters = file.getparams()
        samples = file.readframes(math.ceil(seconds * parameters.framerate))
    with wave.open(str(path), "wb") as file:
        file.setparams(parameters)
        file.writeframes(samples)


def _known_face(picture: object) -> list[Face]:
    return [Face.at(_FACE_BOX)]


def _model(bundle: Bundle) -> SonicModel:
    return SonicModel(make_engine(bundle))


def _record(
    bundle: Bundle, clip: _Clip, checkpoint: Checkpoint, progress: Progress
) -> tuple[np.ndarray, Mapping[str, list[Call]]]:
    """The frames that the bundle generates, uint8 (frames, H, W, 3), and all calls by submodel."""
    model, recorder = _model(bundle), Recorder(_ALL_CALLS)
    engine = WatchedEngine(model.engine, recorder)
    with engine.open("face_detector") as detector:
        detect_faces(np.asarray(load_portrait(clip.portrait)), detector.run, model.constants.face)
    request = ClipRequest(clip.portrait, clip.speech, clip.options, clip.noise, face_box=_FACE_BOX)
    frames = np.asarray(model.generate_request(request, progress, recorder))
    for submodel in SUBMODELS:
        if submodel.name not in recorder.calls:  # the interpolator, if the constants turn interpolation off
            example = submodel.example(read_dimensions(checkpoint), submodel.sizes[0])
            with engine.open(submodel.name) as session:
                session.run({name: tensor.numpy() for name, tensor in example.items()})
    return frames, recorder.calls


class _SubmodelFiles:
    """Writes each submodel's golden vectors while PyTorch has its network loaded for the clip.

    Args:
        calls: the bundle's, by submodel.
        face_mask: (1, 1, H, W) float32.
        target: folder to write to, under the paths in the bundle.

    Attributes:
        written: the manifest's entries, by submodel.
    """

    def __init__(self, calls: Mapping[str, Sequence[Call]], face_mask: np.ndarray, target: Path) -> None:
        self._calls, self._face_mask, self._target = calls, torch.from_numpy(face_mask), target
        self.written: dict[str, GoldenSubmodel] = {}

    @torch.inference_mode()
    def write(self, name: str, module: nn.Module) -> None:
        """Write the file unless it is written already; `module` has the published forward.

        Raises:
            InputError: PyTorch's output differs from the bundle's.
        """
        if name in self.written:
            return
        submodel = find_submodel(name)
        calls = self._calls[name]
        call = _middle(calls)
        expected = published_output(submodel, module, call.inputs, self._face_mask)
        ((output, found),) = call.outputs.items()
        distance = compare(found, expected).relative_l2
        if not distance <= submodel.tolerance:
            raise InputError(
                f"the exported '{name}' differs from PyTorch by {distance:.2e} (relative L2) in a real clip, "
                f"more than {submodel.tolerance:g}; report this with the checkpoint's config.json files"
            )
        path = self._target / FOLDER / f"{name}.npz"
        GoldenVectors(dict(call.inputs), {output: ExpectedOutput.of(expected)}).save(path)
        self.written[name] = GoldenSubmodel(
            file=file_info(path, self._target),
            call_shapes=_distinct_shapes(calls),
            relative_l2=_rounded(distance),
            tolerance=CPU_MARGIN * submodel.tolerance,
        )


def _middle(calls: Sequence[Call]) -> Call:
    """The middle call; of those for guidance branches, the middle one that is conditioned on everything.

    The others hear silence, whose tokens are the same in every frame, and would hide what goes wrong there.
    """
    last = BRANCH_SETS[0]
    whole = [call for call in calls if call.tags.get("branches", last) == last]
    return whole[len(whole) // 2]


def _distinct_shapes(calls: Sequence[Call]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """The shapes of the inputs in all calls, without repetitions, in the order of their first use."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    for call in calls:
        found = {name: array.shape for name, array in call.inputs.items()}
        if found not in shapes:
            shapes.append(found)
    return tuple(shapes)


def _rounded(value: float) -> float:
    """Rounded to three digits: the others change from one run to the next."""
    return float(f"{value:.3g}")


__all__ = ["FOLDER", "make_golden", "measure_reduced"]
