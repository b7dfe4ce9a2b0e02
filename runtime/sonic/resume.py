"""Going on with a clip that was stopped: to which clip a checkpoint belongs, and when one is written.

    with ClipCheckpoint(checkpoint_path(output)) as checkpoint:
        checkpoint.restore(sampler, identity)      # goes on, where there is something to go on with
        ...                                        # the sampler calls checkpoint.after_step
        checkpoint.remove()                        # once the video is saved

A checkpoint holds what changes from step to step. What was computed before denoising is computed again, as it
takes little time beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sonic.bounded import open_regular
from sonic.bundle.bundle import Bundle
from sonic.diffusion.plan import DenoisingPlan
from sonic.diffusion.sampler import ClipSampler
from sonic.errors import InputError, OutputError, warn
from sonic.host import distribution_version
from sonic.media.checks import check_regular_file
from sonic.options import GenerationOptions, RunOptions
from sonic.schema import PathLike, definitions
from sonic.storage.checkpoint import Checkpoint, DamagedCheckpoint, read_checkpoint, write_checkpoint
from sonic.storage.files import reason_of
from sonic.storage.owned import OwnedFile, owned_name
from sonic.watermark.payload import Watermark, first_bits, hour_of

#: A checkpoint is written after a step if that many seconds passed since the last one, so that what is lost
#: is little, and quick clips write none.
SLOW_SECONDS = 5.0
_LONGEST_NAME_BYTES = 255
# The distributions whose code decides on the bytes of the latents.
_SOFTWARE = ("sonic-runtime", "onnxruntime", "numpy")
# What is done with the frames changes no latents: with another of these options, a clip still goes on.
_WATERMARK = ("watermark", "watermark_time", "watermark_job")
_AFTER_DENOISING = ("lip_sync_correction", "smooth_motion", *_WATERMARK)


@dataclass(frozen=True)
class FileIdentity:
    """A file's name, for messages, and its content.

    Attributes:
        name: without its folder.
        sha256: of its content, in hexadecimal.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, source: PathLike | np.ndarray) -> FileIdentity:
        """The identity of a file, or of an array in place of one.

        Raises:
            InputError: the file cannot be read.
        """
        if isinstance(source, np.ndarray):
            return cls._of_array(source)
        check_regular_file(Path(source), "an input file")  # a pipe would never end
        try:
            with os.fdopen(open_regular(source), "rb") as file:  # reading a pipe could block forever
                return cls(Path(source).name, hashlib.file_digest(file, "sha256").hexdigest())
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: the file cannot be read ({reason_of(error)})") from error

    @classmethod
    def _of_array(cls, array: np.ndarray) -> FileIdentity:
        digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
        for row in array:
            digest.update(np.ascontiguousarray(row).data)
        return cls("an array", digest.hexdigest())


def identities(sources: Mapping[str, PathLike | np.ndarray]) -> dict[str, FileIdentity]:
    """The identities of the files that a clip is made from, or of arrays in place of them, by what they are.

    Raises:
        InputError: a file cannot be read.
    """
    return {name: FileIdentity.of(source) for name, source in sources.items()}


@dataclass(frozen=True)
class ClipIdentity:
    """Everything that the latents of a clip depend on.

    Attributes:
        files: "image", "audio", "bundle" (its manifest, which has the digests of all its files), and "noise"
            if it is given.
        options: values by the name of the option; those of the clip, and "bfloat16".
        software: versions of the distributions that compute the latents.
        denoising: :meth:`sonic.diffusion.plan.DenoisingPlan.to_json`.
    """

    files: dict[str, FileIdentity]
    options: dict[str, Any]
    software: dict[str, str]
    denoising: dict[str, Any]

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        files: Mapping[str, FileIdentity],
        options: GenerationOptions,
        face_box: tuple[float, float, float, float] | None,
        run: RunOptions,
        plan: DenoisingPlan,
    ) -> ClipIdentity:
        """The identity of a clip.

        Args:
            bundle: runs it.
            files: what the clip is made from, of :func:`identities`.
            options: resolved with the bundle's constants.
            face_box: given in place of the detector's.
            run: how submodels run; only `bfloat16` changes what is computed.
            plan: the denoising steps.
        """
        manifest = FileIdentity(bundle.manifest.name, bundle.manifest_sha256)
        values = {item.name: getattr(options, item.field) for item in definitions(GenerationOptions)}
        return cls(
            {**files, "bundle": manifest},
            values | {"face_box": face_box, "bfloat16": run.bfloat16},
            {name: distribution_version(name) for name in _SOFTWARE},
            plan.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        """The values as they are read back from a file."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def clip_watermark(
    bundle: Bundle,
    files: Mapping[str, FileIdentity],
    options: GenerationOptions,
    face_box: tuple[float, float, float, float] | None,
) -> Watermark | None:
    """The watermark of a clip, or None if its options want none; the arguments are those of a `ClipIdentity`.

    Where no job is given, it is from a digest of what the video depends on, in which versions have no part.
    """
    if not options.watermark:
        return None
    manifest = bundle.manifest_sha256
    job = options.watermark_job
    if job is None:
        digests = {name: file.sha256 for name, file in files.items()}
        # Checked once more, as that makes 2 and 2.0 one number.
        values = {
            item.name: item.adapter.validate_python(getattr(options, item.field))
            for item in definitions(GenerationOptions)
            if item.name not in _WATERMARK
        }
        text = json.dumps([manifest, digests, values, face_box], sort_keys=True)
        job = first_bits(hashlib.sha256(text.encode()).hexdigest())
    hour = 0 if options.watermark_time is None else hour_of(options.watermark_time)
    return Watermark(first_bits(manifest), hour, job)


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two identities of :meth:`ClipIdentity.to_json`.

    Returns:
        For every part that differs, by its name, how: "another seed (7, now 8)".
    """
    found = dict(_different_parts(before, now))
    explained = set(found) - set(_AFTER_DENOISING)
    if not explained and before.get("denoising") != now["denoising"]:
        found["denoising"] = "another denoising plan"
    return found


def _different_parts(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part, prefix in (("files", ""), ("options", ""), ("software", "version of ")):
        old = before.get(part)
        old = old if isinstance(old, dict) else {}
        for name in dict.fromkeys([*now[part], *old]):
            first, second = old.get(name), now[part].get(name)
            another = "other" if part == "options" and name.endswith("s") else "another"
            if part == "files" and _digest(first) != _digest(second):
                yield name, f"{another} {name} ({_change(_file_name(first), _file_name(second))})"
            elif part != "files" and first != second:
                yield name, f"{another} {prefix}{name} ({_change(_shown(first), _shown(second))})"


def _digest(file: Any) -> Any:
    return file.get("sha256") if isinstance(file, dict) else file


def _file_name(file: Any) -> str:
    return str(file.get("name")) if isinstance(file, dict) else _shown(file)


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _change(first: str, second: str) -> str:
    return f"{first} has changed" if first == second else f"{first}, now {second}"


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoint of a video is: a hidden file beside it, whose name follows from the video's."""
    name = f".{output.name}.checkpoint"
    if len(name.encode()) > _LONGEST_NAME_BYTES:
        name = f".{hashlib.sha256(output.name.encode()).hexdigest()}.checkpoint"
    return output.with_name(name)


class ClipCheckpoint:
    """The checkpoint of a clip that is being generated; a context manager, which does not remove the file.

    If an exception ends the block, a note is added to it that says from where the clip can go on.

    Args:
        path: the file; None for no checkpoint.
        resume: whether to go on with what is in the file; if not, the file is removed.

    Raises:
        OutputError: the file's folder cannot be written, or another process is generating this clip.
    """

    def __init__(self, path: PathLike | None, resume: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self._identity: dict[str, Any] = {}
        self._steps_kept, self._steps = 0, 0
        self._kept_at_seconds = time.monotonic()
        self._noted_failure = False
        self._lock = None if self.path is None else _lock(self.path)
        if not resume:
            self.remove()

    def restore(self, sampler: ClipSampler, identity: ClipIdentity) -> None:
        """Take a sampler to where the checkpoint left its clip, and keep the steps that follow.

        A checkpoint of another clip, and a file that is damaged or something else, is named in a warning, and
        the clip starts over.
        """
        self._identity, self._steps = identity.to_json(), len(sampler.plan.steps)
        stored = None if self.path is None else self._usable(sampler)
        if stored is not None:
            sampler.restore(stored.step, {name: stored.rows(name) for name in stored.shapes})
            self._steps_kept = stored.step
        self._kept_at_seconds = time.monotonic()

    def after_step(self, sampler: ClipSampler) -> None:
        """Write the checkpoint, if enough time passed since the last one.

        If it cannot be written, as on a full disk, that is noted once, and the clip goes on.
        """
        if self.path is None or time.monotonic() - self._kept_at_seconds < SLOW_SECONDS:
            return
        try:
            write_checkpoint(self.path, self._identity, sampler.step, sampler.state)
            self._steps_kept = sampler.step
        except OSError as error:
            if not self._noted_failure:
                warn(f"the checkpoint {self.path} cannot be written ({reason_of(error)}): going on without")
            self._noted_failure = True
        self._kept_at_seconds = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the video is saved, or the clip starts over."""
        self._steps_kept = 0
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def close(self) -> None:
        """Let others generate this clip; the file stays."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> ClipCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None and self._steps_kept:
            error.add_note(
                f"started again with the same arguments, it goes on after step {self._steps_kept} of "
                f"{self._steps} ({self.path})"
            )

    def _usable(self, sampler: ClipSampler) -> Checkpoint | None:
        """The stored checkpoint, if the sampler can go on with it."""
        assert self.path is not None
        try:
            stored = read_checkpoint(self.path)
        except DamagedCheckpoint as error:
            warn(f"{error}: starting over")
            return None
        if stored is None:
            return None
        other = differences(stored.identity, self._identity)
        made_with = f"the checkpoint {self.path} was made with {', '.join(other.values())}"
        if set(other) - set(_AFTER_DENOISING):
            warn(f"{made_with}: starting over")
            return None
        shapes = {name: rows.shape for name, rows in sampler.state.items()}
        if stored.shapes != shapes or not 0 < stored.step <= self._steps:
            warn(f"{self.path} does not hold what this clip needs: starting over")
            return None
        place = f"after step {stored.step} of {self._steps}"
        warn(
            f"{made_with}, which changes no latents: going on {place}"
            if other
            else f"going on {place} ({self.path})"
        )
        return stored


def _lock(path: Path) -> OwnedFile:
    key = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    try:
        return OwnedFile(owned_name(path.with_name(f"{path.name}.lock"), key))
    except BlockingIOError as error:
        raise OutputError(
            f"{path} is in use: another process is generating this clip; wait until it ends, or choose "
            "another output"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise OutputError(
            f"{path}: the folder of the checkpoint should exist and be writable ({reason_of(error)})"
        ) from error
