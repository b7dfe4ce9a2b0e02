"""One changed byte of any file of a bundle is named; a manifest of any content ends in one sentence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import write_values

from sonic.bundle.constants import Constants
from sonic.bundle.manifest_file import manifest_text, read_manifest
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.errors import BundleError

TINY = PACKAGED_BUNDLES / "sonic-tiny"
TEXT = (TINY / "manifest.json").read_bytes()
VALUES = json.loads(TEXT)
PATHS = sorted(path.relative_to(TINY).as_posix() for path in TINY.rglob("*") if path.is_file())
fuzzed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(TINY, tmp_path_factory.mktemp("fuzz") / "bundle"))


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder for a manifest without files."""
    return tmp_path


def sentence(directory: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_manifest(directory)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1_000 and "manifest.json" in message
    return message


@pytest.mark.parametrize("path", PATHS)
def test_one_changed_byte_is_named(directory: Path, path: str) -> None:
    content = (directory / path).read_bytes()
    rng = int(
        hashlib.sha256(path.encode()).hexdigest(), 16
    )  # other places in every file, the same every time
    try:
        for position, bit in ((0, 0), (len(content) - 1, 7), (rng % len(content), rng % 8)):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            (directory / path).write_bytes(changed)
            with pytest.raises(BundleError, match=re.escape(path)) as caught:
                open_bundle(directory)
            assert "\n" not in str(caught.value)
    finally:
        (directory / path).write_bytes(content)
    open_bundle(directory)


@fuzzed
@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_manifest_is_noticed(alone: Path, position: int, change: int) -> None:
    content = bytearray(TEXT)
    content[position] ^= change
    (alone / "manifest.json").write_bytes(content)
    sentence(alone)


def entries(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or array in a value, with each of its keys."""
    keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from entries(values[key])


COUNT = sum(1 for _ in entries(VALUES))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 0, 2**63, 1e308, "../x", "/etc/passwd", "\x00", "\ud800", "a" * 10_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@fuzzed
@given(st.integers(0, COUNT - 1), anything | st.just(...))
def test_any_entry_with_the_right_digest(alone: Path, index: int, value: Any) -> None:
    """Whoever makes a bundle can say anything: it is a manifest, or one sentence says why not."""
    values = json.loads(TEXT)
    holder, key = next(pair for number, pair in enumerate(entries(values)) if number == index)
    if value is ...:
        del holder[key]
    else:
        holder[key] = value
    (alone / "manifest.json").write_text(manifest_text(values), errors="surrogatepass")
    try:
        read_manifest(alone)
    except BundleError as error:
        assert "\n" not in str(error) and len(str(error)) < 2_000


@fuzzed
@given(st.binary(max_size=300))
def test_any_bytes_are_no_manifest(alone: Path, content: bytes) -> None:
    (alone / "manifest.json").write_bytes(content)
    sentence(alone)


CONSTANTS = [(part.name, item) for part in fields(Constants) for item in VALUES["constants"][part.name]]


@pytest.mark.parametrize(("part", "name"), CONSTANTS)
def test_every_constant_has_bounds(alone: Path, part: str, name: str) -> None:
    values = json.loads(TEXT)
    known = values["constants"][part][name]
    for extreme in (-(10**15), 10**15, -1e15, 1e15, float("nan"), None, "1", [], [10**15] * 3):
        if isinstance(known, list) and not isinstance(extreme, list | str) and extreme is not None:
            values["constants"][part][name] = [extreme] * len(known)
        else:
            values["constants"][part][name] = extreme
        if part == "sampler" and name == "seed" and extreme == 10**15:
            continue  # any seed is as good as another
        write_values(alone, values)
        sentence(alone)


def test_the_digest_is_of_the_file_without_it(alone: Path) -> None:
    text = manifest_text({"schema_version": 1, "digest": "old"})
    (entry,) = re.findall('"digest": "([0-9a-f]{64})"', text)
    assert entry == hashlib.sha256(text.replace(entry, "").encode()).hexdigest()
    assert manifest_text(json.loads(text)) == text


def test_a_manifest_of_an_earlier_version(alone: Path) -> None:
    values = {name: value for name, value in VALUES.items() if name != "digest"}
    (alone / "manifest.json").write_text(json.dumps(values))
    assert "convert the checkpoint again" in sentence(alone)
    assert read_manifest(alone, check_digest=False).name == "sonic-tiny"


def test_a_second_digest_is_no_way_out(alone: Path) -> None:
    """A copy of the entry in another place must not be taken for it."""
    values = json.loads(TEXT)
    values["parity"]["note"] = 'a "digest": "" b'
    write_values(alone, values)
    read_manifest(alone)
    (alone / "manifest.json").write_text(
        (alone / "manifest.json").read_text().replace("sonic-tiny", "sonic-ting")
    )
    assert "was changed" in sentence(alone)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v["submodels"].append(v["submodels"][0]), "'submodels' should be a list of objects with"),
        (lambda v: v.update(submodels=3), "'submodels' should be a list"),
        (lambda v: v["submodels"][0].update(name=[]), "'submodels' should be a list"),
        (lambda v: v["submodels"][0]["files"].append(v["assets"]["mel_filters"]), "is listed twice"),
        (lambda v: v["submodels"][0]["files"][0].update(path=".cache/x"), "cannot be a file"),
        (lambda v: v["submodels"][0]["files"][0].update(path="model.sig"), "cannot be a file"),
        (lambda v: v["submodels"][0]["files"][0].update(path="a//b"), "plain relative path"),
        (lambda v: v["submodels"][0]["files"][0].update(path="a\\b"), "plain relative path"),
        (lambda v: v["submodels"][0]["files"][0].update(sha256="A" * 64), "sha256"),
        (lambda v: v["submodels"][0]["work"]["flop"].update(linear={"shoes": 1.0}), "the axis 'shoes'"),
        (lambda v: v["submodels"][0]["work"]["flop"].update(linear={"1*" * 9 + "1": 1.0}), "8 factors"),
        (lambda v: v.update(engine="tvm"), "'machine_code' should be true"),
        (lambda v: v.update(target={"features": "asimd"}), "'target' should hold names"),
        (lambda v: v["constants"]["sampler"].update(window_overlap_frames=25), "'window_frames'"),
        (lambda v: v["constants"]["sampler"].update(sigma_min=90.0, sigma_max=80.0), "'sigma_max'"),
        (lambda v: v["constants"]["audio"].update(hop_samples=16, fft_samples=8192), "too much for"),
        (
            lambda v: v["speeds"]["presets"]["fast"].update(
                steps=[{"sigma": 3.0 - i / 999} for i in range(1001)]
            ),
            "at most 1000",
        ),
    ],
)  # fmt: skip
def test_what_concerns_several_entries(alone: Path, change: Any, expected: str) -> None:
    values = json.loads(TEXT)
    change(values)
    write_values(alone, values)
    assert expected in sentence(alone)
