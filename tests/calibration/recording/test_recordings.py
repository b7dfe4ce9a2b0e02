"""Calls of submodels, recorded on disk."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import sonic
from sonic.bundle.store import open_bundle
from sonic.errors import InputError, OutputError
from sonic.options import GenerationOptions
from sonic_calibration.recording import recordings as module
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import RecordingOptions, Recordings, Sample, record

OPTIONS = RecordingOptions(
    calls=16, clip=GenerationOptions(duration=0.3, min_resolution=64, inference_steps=2)
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, portrait: Path, short_wav: Path) -> list[Example]:
    """Two examples with different portraits."""
    mirrored = tmp_path_factory.mktemp("mirrored") / "portrait.png"
    with Image.open(portrait) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    return [Example(portrait, short_wav), Example(mirrored, short_wav)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, small, examples: list[Example]) -> Recordings:
    """An uninterrupted recording of both examples; tests must not change it."""
    return record(small.bundle, examples, tmp_path_factory.mktemp("recordings") / "r", OPTIONS)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The portraits of the clips that are generated from now on."""
    portraits: list[Path] = []
    generate = sonic.SonicModel.generate

    def noted(self, image, *arguments, **options):
        portraits.append(image)
        return generate(self, image, *arguments, **options)

    monkeypatch.setattr(sonic.SonicModel, "generate", noted)
    return portraits


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def tag(recordings: Recordings, submodel: str, name: str) -> list[Any]:
    return [sample.tags[name] for sample in recordings.samples(submodel)]


def total_bytes(sample: Sample) -> int:
    return sum(array.nbytes for kind in ("in", "out") for array in sample.arrays(kind).values())


def test_samples_cover_examples_steps_and_branches(recorded: Recordings) -> None:
    samples = recorded.samples("unet")
    seen = Counter((s.tags["example"], s.tags["step"], *s.tags["branches"]) for s in samples)
    assert seen == {(e, step, branch): 1 for e in range(2) for step in range(2) for branch in range(3)}
    assert set(tag(recorded, "unet", "window")) == {0}
    sigmas = dict(zip(tag(recorded, "unet", "step"), tag(recorded, "unet", "sigma"), strict=True))
    assert sigmas[0] > sigmas[1] > 0
    assert tag(recorded, "vae_decoder", "example") == [0, 1]
    assert recorded.samples("image_encoder") == []


@pytest.mark.parametrize("submodel", ["unet", "vae_decoder"])
def test_outputs_are_what_a_submodel_makes_of_the_inputs(recorded: Recordings, small, submodel: str) -> None:
    session = onnxruntime.InferenceSession(str(open_bundle(small.bundle).graph_path(submodel)))
    names = [output.name for output in session.get_outputs()]
    for sample in recorded.samples(submodel):
        outputs = sample.arrays("out")
        assert sorted(outputs) == sorted(names)
        for name, values in zip(names, session.run(names, sample.arrays("in")), strict=True):
            np.testing.assert_allclose(outputs[name], values, atol=1e-5 * np.abs(values).max())


def test_calls_of_different_examples_differ(recorded: Recordings) -> None:
    first, second = (sample.arrays("in")["latents"] for sample in recorded.samples("vae_decoder"))
    assert first.shape == second.shape and np.abs(first - second).max() > 1e-3


def test_finished_examples_are_not_generated_again(
    recorded: Recordings, small, examples: list[Example], generated: list[Path]
) -> None:
    before = contents(recorded.folder)
    again = record(small.bundle, examples, recorded.folder, OPTIONS)
    assert generated == []
    assert again == recorded and contents(recorded.folder) == before


@pytest.mark.parametrize("calls", [0, 3])
def test_an_interrupted_recording_resumes(
    recorded: Recordings,
    small,
    examples: list[Example],
    tmp_path: Path,
    generated: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    generate = sonic.SonicModel.generate

    def interrupted(self, image, *arguments, observer, **options):
        count = 0

        def watch(call) -> None:
            nonlocal count
            count += call.submodel == "unet"
            if image == examples[1].image and count >= calls:
                raise KeyboardInterrupt
            observer(call)

        return generate(self, image, *arguments, observer=watch, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sonic.SonicModel, "generate", interrupted)
        record(small.bundle, examples, tmp_path / "r", OPTIONS)
    assert len(Recordings(tmp_path / "r", "").samples("vae_decoder")) == 1  # the first one is complete
    generated.clear()
    resumed = record(small.bundle, examples, tmp_path / "r", OPTIONS)
    assert generated == [examples[1].image]
    assert resumed.digest == recorded.digest
    assert contents(resumed.folder) == contents(recorded.folder)


def test_an_interrupted_writing_resumes(
    recorded: Recordings, small, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savez, count = np.savez, 0

    def interrupted(*arguments, **arrays):
        nonlocal count
        count += 1
        if count == 10:  # the third call of the second example
            raise KeyboardInterrupt
        savez(*arguments, **arrays)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.np, "savez", interrupted)
        record(small.bundle, examples, tmp_path / "r", OPTIONS)
    assert set(tag(Recordings(tmp_path / "r", ""), "unet", "example")) == {0}
    record(small.bundle, examples, tmp_path / "r", OPTIONS)
    assert contents(tmp_path / "r") == contents(recorded.folder)


def test_other_options_examples_and_submodels_replace_the_recordings(
    recorded: Recordings, small, examples: list[Example], tmp_path: Path, generated: list[Path]
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(recorded.folder, folder)
    few = RecordingOptions(
        calls=2, clip=GenerationOptions(duration=0.3, min_resolution=64, inference_steps=1)
    )
    digests = {recorded.digest}
    last = examples[1:]
    for chosen, submodels in ((examples, ("unet",)), (last, ("unet",)), (last, ("vae_encoder",))):
        generated.clear()
        found = record(small.bundle, chosen, folder, few, submodels)
        assert found.digest not in digests
        digests.add(found.digest)
        assert generated == [example.image for example in chosen]
        counts = Counter(sample.tags["example"] for sample in found.samples(submodels[0]))
        assert set(counts) == set(range(len(chosen))) and max(counts.values()) <= 2
        assert len(list(folder.rglob("*.npz"))) == counts.total()  # the old recordings are gone


def test_the_bytes_are_kept_within_their_limit(small, examples: list[Example], tmp_path: Path) -> None:
    unlimited = record(small.bundle, examples[:1], tmp_path / "a", OPTIONS, ("unet",))
    sizes = [total_bytes(sample) for sample in unlimited.samples("unet")]
    assert len(sizes) == 6
    limited = RecordingOptions(
        16, 3 * sizes[0], clip=GenerationOptions(duration=0.3, min_resolution=64, inference_steps=2)
    )
    kept = record(small.bundle, examples[:1], tmp_path / "b", limited, ("unet",)).samples("unet")
    assert 2 <= len(kept) <= 3
    assert sum(map(total_bytes, kept)) <= limited.bytes
    first = record(
        small.bundle,
        examples[:1],
        tmp_path / "c",
        RecordingOptions(16, 1, clip=GenerationOptions(duration=0.3, min_resolution=64, inference_steps=1)),
        ("unet",),
    )
    assert tag(first, "unet", "branches") == [[0]]


def test_a_folder_of_something_else_is_left_alone(small, examples: list[Example], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no recordings; choose another folder"):
        record(small.bundle, examples, tmp_path, OPTIONS)
    with pytest.raises(OutputError, match="thesis.txt \\(Not a directory\\)"):
        record(small.bundle, examples, tmp_path / "thesis.txt", OPTIONS)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_no_examples_and_numbers_under_1_are_refused(small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no examples to record"):
        record(small.bundle, [], tmp_path / "r", OPTIONS)
    assert list(tmp_path.iterdir()) == []
    for options in ({"calls": 0}, {"bytes": 0}, {"calls": -3}):
        with pytest.raises(InputError, match="should be at least 1"):
            RecordingOptions(**options)


def test_an_example_that_is_missing_is_refused(small, portrait: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing.wav"):
        record(small.bundle, [Example(portrait, tmp_path / "missing.wav")], tmp_path / "r", OPTIONS)


def test_an_example_that_cannot_be_used_is_refused(small, portrait: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError, match="text.wav"):
        record(small.bundle, [Example(portrait, tmp_path / "text.wav")], tmp_path / "r", OPTIONS)
