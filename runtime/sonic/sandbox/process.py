"""Having a file decoded by a confined process, and reading what it sends.

    with decode("sound", settings, file, Budget()) as decoding:
        header = decoding.header
        for samples in decoding.data(at_most_bytes):
            ...
    decoding.end["notes"]

A process is started for every file and ends with it. It is a new Python, not a fork of this one, whose
threads (those of ONNX Runtime, for example) a fork would break; it imports only the reader.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sonic.errors import SonicError
from sonic.sandbox import worker
from sonic.sandbox.protocol import DATA_BYTES, HEAD, TEXT_BYTES, Messages, Refusal, readable

# The package without its __init__, which imports the whole runtime.
_BOOTSTRAP = """
import json, sys, types
paths, folder, order = json.loads(sys.argv[1])
sys.path[:] = paths
package = types.ModuleType("sonic")
package.__path__ = [folder]
sys.modules["sonic"] = package
from sonic.sandbox.worker import Order, main
main(Order(**order))
"""
# OpenBLAS's threads would take address space; nothing here multiplies matrices.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "SYSTEMROOT")
_PIPE_BYTES = 2**20
# On a busy machine, time by the clock says little about what a file costs.
_CLOCK_FACTOR = 3


@dataclass(frozen=True)
class Budget:
    """What decoding one file may take.

    Attributes:
        seconds: of processor time; by the clock, it may be three times as much.
        memory_bytes: beyond the libraries.
        confined: whether a confined process decodes; if not, this process does, and neither time nor
            memory is limited.
    """

    seconds: float = 60.0
    memory_bytes: int = 800_000_000
    confined: bool = True


class _Source(Protocol):
    """Who decodes: a process or a thread of this one."""

    output: int

    def stop(self) -> int: ...


class Decoding:
    """The messages of one decoding, in order.

    Attributes:
        header: what follows.
        end: the last message; empty before it came.

    Raises:
        Refusal: the input cannot be used.
        SonicError: the decoding process does not do its work.
    """

    def __init__(self, source: _Source, budget: Budget) -> None:
        self._source, self._budget = source, budget
        self._deadline = time.monotonic() + _CLOCK_FACTOR * budget.seconds if budget.confined else None
        self.end: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        kind, body = self._next()
        if kind == b"H":
            self.header = _object(body)
        elif kind == b"Z":
            self.end = _object(body)
        else:
            raise _broken()

    def data(self, at_most_bytes: int) -> Iterator[bytes]:
        """The parts of the result.

        Raises:
            SonicError: they are more than `at_most_bytes`.
        """
        size = 0
        while True:
            kind, body = self._next()
            if kind == b"Z":
                self.end = _object(body)
                return
            size += len(body)
            if kind != b"D" or size > at_most_bytes:
                raise _broken()
            yield body

    def _next(self) -> tuple[bytes, bytes]:
        kind, length = HEAD.unpack(self._exactly(HEAD.size))
        if length > (DATA_BYTES if kind == b"D" else TEXT_BYTES):
            raise _broken()
        body = self._exactly(length)
        if kind == b"E":
            raise Refusal(readable(body.decode(errors="replace")))
        return kind, body

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._wait()
            part = os.read(self._source.output, size - len(parts))
            if not part:
                self._ended_early(self._source.stop())
            parts += part
        return bytes(parts)

    def _wait(self) -> None:
        if self._deadline is None:
            return
        poll = select.poll()
        poll.register(self._source.output, select.POLLIN)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise Refusal(self._too_slow())

    def _too_slow(self) -> str:
        return (
            f"takes more than {self._budget.seconds:g} s to decode; give a smaller one, or raise the limit "
            "decode-seconds"
        )

    def _ended_early(self, code: int) -> None:
        if code == -signal.SIGXCPU:
            raise Refusal(self._too_slow())
        if code == -signal.SIGKILL:
            raise Refusal(
                "could not be decoded: the process was killed, as when the machine's memory runs out"
            )
        if code < 0:
            with suppress(ValueError):
                raise Refusal(f"is damaged: its decoder failed ({signal.Signals(-code).name})")
        raise SonicError(
            f"the process that decodes inputs ended with exit code {code}; check the installation of av, "
            f"numpy and pillow for {sys.executable}"
        )


@contextmanager
def decode(kind: str, settings: dict[str, Any], file: BinaryIO | None, budget: Budget) -> Iterator[Decoding]:
    """Decode an open file; whatever happens, the process has ended when the block does.

    Args:
        kind: "picture" or "sound"; "probe" for :func:`sandbox_report`.
        settings: the fields of `PictureSettings` or `SoundSettings`.
        file: open for reading, at its beginning; it should be a regular file.
        budget: what decoding may take.

    Raises:
        Refusal: the input cannot be used; the rest of a sentence that starts with the file's name.
        SonicError: no process can be started, or it does not do its work.
    """
    order = worker.Order(kind, settings, budget.seconds, budget.memory_bytes)
    source: _Source = _Process(order, file) if budget.confined else _Thread(order, file)
    try:
        yield Decoding(source, budget)
    finally:
        source.stop()


class _Process:
    """A confined process."""

    def __init__(self, order: worker.Order, file: BinaryIO | None) -> None:
        if not sys.executable:
            raise SonicError(
                "inputs are decoded by a second Python process, but this program does not know its Python; "
                "set sys.executable, or SONIC_SANDBOX=0 to decode in this process, without protection"
            )
        paths = [str(Path(path).absolute()) for path in sys.path if path]
        arguments = json.dumps([paths, str(Path(__file__).parents[1].absolute()), order.to_json()])
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [_python(), "-I", "-S", "-B", "-c", _BOOTSTRAP, arguments],
                stdin=subprocess.DEVNULL if file is None else file,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT | kept,
                cwd="/",
                pipesize=_PIPE_BYTES,
                process_group=0,  # Ctrl-C is for this process, which then ends that one
            )
        except OSError as error:
            right = f"check the limits of processes and memory, and {sys.executable}"
            if error.errno == errno.ENOEXEC:  # of another architecture: this process is emulated
                right = "set SONIC_SANDBOX=0 to decode in this process, without protection"
            raise SonicError(
                f"the process that decodes inputs cannot be started ({error.strerror or error}); {right}"
            ) from error
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()

    def stop(self) -> int:
        """End it, if it has not ended by itself; returns its exit code, negative for a signal."""
        process = self._process
        if process.stdout is not None and process.stdout.closed:
            return process.wait()
        # One that has closed its output is about to end.
        ended = _closed(self.output)
        if ended:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        process.kill()
        code = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        return code


def _python() -> str:
    """A path of this Python; its own name is out of reach for a user who may not enter its folder."""
    running = "/proc/self/exe"
    return running if not os.access(sys.executable, os.X_OK) and os.path.exists(running) else sys.executable


def _closed(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


class _Thread:
    """The same work in this process, for emulators that can start no other, and for debuggers."""

    def __init__(self, order: worker.Order, file: BinaryIO | None) -> None:
        self.output, self._input = os.pipe()
        self._order, self._file = order, file
        self._error: BaseException | None = None
        self._open = True
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            worker.carry_out(self._order, Messages(self._write), confined=False, file=self._file)
        except BrokenPipeError:  # nobody wants the rest
            pass
        except BaseException as error:
            self._error = error
        finally:
            os.close(self._input)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._input, view) :]

    def stop(self) -> int:
        if self._open:
            self._open = False
            os.close(self.output)
            self._thread.join()
            if self._error is not None:
                raise self._error
        return 0


def sandbox_report() -> dict[str, Any]:
    """What confines the decoding process on this system, as it found it when it tried.

    Returns:
        "by", a list of what the system offers, and "possible", whether "files", "network" and "processes" are
        still within reach.

    Raises:
        SonicError: no process can be started.
    """
    try:
        with decode("probe", {}, None, Budget(seconds=20, memory_bytes=100_000_000)) as decoding:
            return decoding.end
    except Refusal as refusal:
        raise SonicError(f"the process that decodes inputs {refusal}") from refusal


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise _broken() from error
    if not isinstance(value, dict):
        raise _broken()
    return value


def _broken() -> SonicError:
    return SonicError(
        "the process that decodes inputs sent something else than a result; do not use this file"
    )


__all__ = ["Budget", "Decoding", "decode", "sandbox_report"]
