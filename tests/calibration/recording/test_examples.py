"""Pairing of portraits and recordings, and the built-in examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic.media.audio import load_sound
from sonic.media.portrait import load_portrait
from sonic_calibration.recording.examples import BUILT_IN, Example, read_examples

STEMS = st.sets(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=6)


def folder_of(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names_of(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.image.name, example.audio.name) for example in examples]


def test_names_that_agree_are_pairs(tmp_path: Path) -> None:
    folder_of(tmp_path, "zoe.JPG", "anna.png", "anna.wav", "zoe.Mp3", "lone.webp", "none.flac", "notes.txt")
    assert names_of(read_examples(tmp_path)) == [("anna.png", "anna.wav"), ("zoe.JPG", "zoe.Mp3")]
    assert read_examples(tmp_path)[0] == Example(tmp_path / "anna.png", tmp_path / "anna.wav")


@given(STEMS, STEMS)
def test_every_file_is_used_where_no_names_agree(
    tmp_path_factory: pytest.TempPathFactory, pictures: set[str], recordings: set[str]
) -> None:
    folder = folder_of(
        tmp_path_factory.mktemp("examples"),
        *(f"{stem}.png" for stem in pictures),
        *(f"{stem}.wav" for stem in recordings),
    )
    found = names_of(read_examples(folder))
    common = sorted(pictures & recordings)
    if common:
        assert found == [(f"{stem}.png", f"{stem}.wav") for stem in common]
    else:
        assert len(found) == max(len(pictures), len(recordings))
        for number, (image, audio) in enumerate(found):
            assert image == f"{sorted(pictures)[number % len(pictures)]}.png"
            assert audio == f"{sorted(recordings)[number % len(recordings)]}.wav"


def test_folders_are_not_examples(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "b.wav")
    (tmp_path / "b.png").mkdir()
    assert names_of(read_examples(tmp_path)) == [("a.png", "b.wav")]


def test_a_folder_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, message in (
        (tmp_path / "missing", "the examples cannot be read \\(No such file or directory\\)"),
        (tmp_path / "file", "the examples cannot be read \\(Not a directory\\)"),
        (folder_of(tmp_path / "empty"), "holds no portrait; put at least one there .*\\.png"),
        (folder_of(tmp_path / "deaf", "a.png", "a.txt"), "holds no recording; .*\\.wav"),
        (folder_of(tmp_path / "blind", "a.wav"), "holds no portrait"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            read_examples(folder)
        assert str(folder) in str(raised.value)


def test_the_built_in_examples_can_be_used() -> None:
    examples = read_examples(BUILT_IN)
    assert len(examples) == 6
    for example in examples:
        assert example.image.stem == example.audio.stem
        assert min(load_portrait(example.image).size) >= 64
        sound = load_sound(example.audio)
        assert sound.duration_seconds > 1
        assert sound.samples.std() > 100  # not silent
