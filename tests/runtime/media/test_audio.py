"""Decoding, mixing, resampling and the log-mel spectrogram."""

from __future__ import annotations

import math
import os
import struct
import warnings
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import AudioConstants
from sonic.errors import InputError, OutputError, SonicWarning
from sonic.media.audio import Sound, load_sound, log_mel, mono_samples
from sonic.options import IntakeLimits
from sonic.sandbox.sounds import Converter

CONSTANTS = AudioConstants()


def chirp(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray:
    """float32 (channels, n): a rising tone with a little noise, so that shifts show."""
    time = np.arange(round(rate_hz * seconds)) / rate_hz
    noise = np.random.default_rng(0).normal(scale=0.02, size=(channels, len(time)))
    tones = [0.4 * np.sin(2 * np.pi * (200 + 40 * c + 300 * time) * time) for c in range(channels)]
    return (np.stack(tones) + noise).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    """int16 (n,) or (n, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def encode(path: Path, codec: str, samples: np.ndarray, rate_hz: int) -> Path:
    """Write float32 (channels, n) with one of FFmpeg's encoders."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        converter = av.AudioResampler(stream.format, layout, rate_hz, frame_size=stream.frame_size or None)
        for part in [*converter.resample(frame), *converter.resample(None), None]:
            container.mux(list(stream.encode(part)))
    return path


def test_a_wav_file_keeps_its_samples(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, (4410, 2)).astype(np.int16)
    sound = load_sound(write_wav(tmp_path / "two.wav", samples, 44_100))
    assert sound.sample_rate_hz == 44_100
    assert sound.samples.dtype == np.int16
    np.testing.assert_array_equal(sound.samples, samples)
    assert sound.duration_seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels"),
    [
        ("a.mp3", "libmp3lame", 48_000, 2),
        ("a.mp3", "libmp3lame", 44_100, 1),
        ("a.flac", "flac", 44_100, 2),
        ("a.opus", "libopus", 48_000, 2),
        ("a.m4a", "aac", 48_000, 2),
    ],
)
def test_encoder_delays_are_removed(
    tmp_path: Path, name: str, codec: str, rate_hz: int, channels: int
) -> None:
    original = chirp(rate_hz, 0.9, channels)
    sound = load_sound(encode(tmp_path / name, codec, original, rate_hz))
    assert (sound.sample_rate_hz, sound.samples.shape[1]) == (rate_hz, channels)
    length = original.shape[1]
    # M4A does not state how much of the last block of 1,024 is filling.
    assert length <= len(sound.samples) <= length + (1024 if codec == "aac" else 0)
    decoded = sound.samples[:, 0] / 32768
    middle = slice(4000, length - 4000)
    products = [
        float(original[0, middle] @ decoded[4000 + lag : length - 4000 + lag])
        for lag in range(-2500, 2501, 4)
    ]
    assert range(-2500, 2501, 4)[int(np.argmax(products))] == 0


@pytest.mark.filterwarnings("ignore::sonic.errors.SonicWarning")
def test_float_sources_are_clipped(tmp_path: Path) -> None:
    samples = np.tile(np.array([[1.7, -1.7, 0.25, -0.25]], np.float32), 1000)
    sound = load_sound(encode(tmp_path / "loud.wav", "pcm_f32le", samples, 16_000))
    np.testing.assert_array_equal(sound.samples[:4, 0], [32767, -32768, 8192, -8192])


def test_more_channels_become_stereo(tmp_path: Path) -> None:
    samples = chirp(16_000, 0.5, 6)
    samples[:2] = 0  # front left and right; the centre, third, goes to both
    sound = load_sound(encode(tmp_path / "six.wav", "pcm_s16le", samples, 16_000))
    assert sound.samples.shape == (8000, 2)
    centre = samples[2]
    assert all(np.corrcoef(centre, sound.samples[:, c])[0, 1] > 0.5 for c in (0, 1))


@given(seconds=st.floats(0.1, 3.0))
@settings(max_examples=15, deadline=None)
def test_the_limit_cuts_the_beginning(tmp_path_factory: pytest.TempPathFactory, seconds: float) -> None:
    samples = (chirp(16_000, 2.0)[0] * 20_000).astype(np.int16)
    path = tmp_path_factory.getbasetemp() / "limit.wav"
    if not path.exists():
        write_wav(path, samples, 16_000)
    sound = load_sound(path, seconds)
    np.testing.assert_array_equal(sound.samples[:, 0], samples[: round(seconds * 16_000)])


@pytest.mark.parametrize("limit", [0, -1, 0.05, float("nan"), float("inf")])
def test_a_useless_limit_is_refused(tmp_path: Path, limit: float) -> None:
    with pytest.raises(InputError, match="0.1 s or more"):
        load_sound(tmp_path / "any.wav", limit)


def test_a_play_list_is_not_followed(tmp_path: Path) -> None:
    target = encode(tmp_path / "real.mp3", "libmp3lame", chirp(44_100, 0.5), 44_100)
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
        f"#EXTINF:0.5,\n{target}\n#EXT-X-ENDLIST\n"
    )
    with av.open(str(tmp_path / "list.m3u8")) as container:  # FFmpeg itself would
        assert sum(frame.samples for frame in container.decode(audio=0)) > 20_000
    with pytest.raises(InputError, match="list.m3u8 cannot be decoded as sound"):
        load_sound(tmp_path / "list.m3u8")


@pytest.mark.parametrize("name", ["http:voice.wav", "50%20.wav", "Zoë und wir.wav"])
def test_names_that_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(Path(name), np.full(8000, 4000), 16_000)
    assert len(load_sound(name).samples) == 8000


def test_tags_that_are_no_unicode(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "tag.wav", np.full(8000, 4000), 16_000)
    title = b"INFOINAM" + struct.pack("<I", 4) + b"\xe9\xff\xfea"
    data = path.read_bytes() + b"LIST" + struct.pack("<I", len(title)) + title
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert len(load_sound(path).samples) == 8000


def test_a_joined_file_of_two_rates(tmp_path: Path) -> None:
    paths = [
        encode(tmp_path / f"{rate_hz}.mp3", "libmp3lame", chirp(rate_hz, 1.0), rate_hz)
        for rate_hz in (48_000, 44_100)
    ]
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    sound = load_sound(joined)
    # Both parts last their second, beside the 0.05 s of filling that MP3 adds at the joint.
    assert 1.98 < sound.duration_seconds < 2.08


def test_a_change_of_rate_loses_nothing() -> None:
    parts = []
    for rate_hz in (48_000, 16_000):
        frame = av.AudioFrame.from_ndarray(chirp(rate_hz, 0.5), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        parts.append(frame)
    converter = Converter(parts[0])
    samples = [*map(converter.convert, parts), converter.finish()]
    assert abs(sum(map(len, samples)) // 2 - 48_000) <= 2


def test_a_few_damaged_packets_are_skipped(tmp_path: Path) -> None:
    path = encode(tmp_path / "scratch.mp3", "libmp3lame", chirp(44_100, 3.0), 44_100)
    data = bytearray(path.read_bytes())
    data[12_000:12_300] = np.random.default_rng(2).bytes(300)
    path.write_bytes(data)
    assert 2.5 < load_sound(path).duration_seconds <= 3.0


def test_many_damaged_packets_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "ruin.flac", "flac", chirp(44_100, 3.0), 44_100)
    data = bytearray(path.read_bytes())
    start = len(data) // 10
    # Only the frames' headers stay as they were: every frame is found, few can be decoded.
    for offset in range(start, len(data) - 64, 2000):
        data[offset : offset + 40] = b"\x55" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match="ruin.flac is damaged.*packets"):
        load_sound(path)


def bad_files(folder: Path) -> dict[str, str]:
    """Names of unusable files and what is said about them."""
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("no sound\n" * 500)
    (folder / "noise.mp3").write_bytes(np.random.default_rng(3).bytes(40_000))
    write_wav(folder / "header.wav", np.zeros(0), 16_000)
    write_wav(folder / "short.wav", np.full(1599, 4000), 16_000)
    write_wav(folder / "silent.wav", np.full(16_000, 3), 16_000)
    write_wav(folder / "slow.wav", np.full(4000, 4000), 1000)
    with av.open(str(folder / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 64
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([*stream.encode(picture), *stream.encode(None)])
    return {
        "missing.wav": "does not exist",
        "folder.wav": "is a folder",
        "pipe.wav": "not a regular file",
        "empty.wav": "is empty",
        "text.mp3": "WAV, MP3",
        "noise.mp3": "WAV, MP3",
        "header.wav": "WAV, MP3",
        "short.wav": "at least 0.1 s",
        "silent.wav": "is silent",
        "slow.wav": "1000 Hz",
        "mute.mp4": "holds no sound",
    }


def test_unusable_files_are_named(tmp_path: Path) -> None:
    for name, text in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=text) as caught:
            load_sound(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_quiet_voice_is_not_silence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "quiet.wav", np.full(16_000, -4), 16_000)
    assert int(load_sound(path).samples.min()) == -4


def test_a_cut_file_gives_what_is_there(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "cut.wav", np.full(16_000, 4000), 16_000)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 9000])
    assert len(load_sound(path).samples) == 9000


def test_mono_is_the_mean_at_the_same_rate() -> None:
    samples = np.array([[32767, -32768], [100, 301], [-32768, -32768]], np.int16)
    mono = mono_samples(Sound(samples, 16_000), 16_000)
    assert mono.dtype == np.float32
    np.testing.assert_array_equal(mono, np.array([-0.5, 200.5, -32768], np.float32) / 32768)


@given(
    rate_hz=st.sampled_from([8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]),
    length=st.integers(800, 9000),
    channels=st.integers(1, 2),
)
@settings(max_examples=30, deadline=None)
def test_resampling_keeps_the_length_and_the_level(rate_hz: int, length: int, channels: int) -> None:
    mono = mono_samples(Sound(np.full((length, channels), 8192, np.int16), rate_hz), 16_000)
    assert len(mono) == math.ceil(length * 16_000 / rate_hz)
    middle = mono[len(mono) // 3 : -len(mono) // 3]
    np.testing.assert_allclose(middle, 0.25, atol=2e-3)


def test_resampling_keeps_a_tone_in_time() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    sound = Sound((tone * 16_384).astype(np.int16)[:, np.newaxis], 48_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(mono_samples(sound, 16_000)[500:-500], expected[500:-500], atol=1e-4)


def flat_filters() -> np.ndarray:
    """Filters that pass one bin each."""
    return np.eye(201, 80, dtype=np.float32)


def test_log_mel_of_silence_is_flat() -> None:
    mel = log_mel(np.zeros(0, np.float32), flat_filters(), CONSTANTS)
    assert (mel.shape, mel.dtype) == ((1, 80, 3000), np.float32)
    np.testing.assert_array_equal(mel, -1.5)  # (log10(1e-10) + 4) / 4


def test_log_mel_of_a_tone() -> None:
    # 1 kHz is bin 25 of 400 at 16 kHz; a Hann window passes half of its amplitude there, and a
    # sine's bin holds half of length * amplitude: (400 * 0.5 / 2 * 0.5) ** 2.
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(480_000) / 16_000).astype(np.float32)
    mel = log_mel(tone, flat_filters(), CONSTANTS)[0]
    assert mel[:, 1000].argmax() == 25
    assert mel[25, 1000] == pytest.approx((np.log10(50.0**2) + 4) / 4, abs=1e-4)
    assert mel.max() - mel.min() == pytest.approx(2.0, abs=1e-6)  # 8 decades, a quarter each


def test_log_mel_places_sound_in_time() -> None:
    samples = np.zeros(32_000, np.float32)
    samples[16_000] = 1.0  # at 1 s, where frame 100 of 160 samples is centred
    power = log_mel(samples, flat_filters(), CONSTANTS)[0].sum(axis=0)
    assert power.argmax() == 100
    assert np.ptp(power[102:]) == 0


@pytest.mark.parametrize(
    ("samples", "filters"),
    [
        (np.zeros(480_001, np.float32), np.zeros((201, 80), np.float32)),
        (np.zeros((1, 100), np.float32), np.zeros((201, 80), np.float32)),
        (np.zeros(100, np.float32), np.zeros((80, 201), np.float32)),
    ],
)
def test_log_mel_refuses_other_shapes(samples: np.ndarray, filters: np.ndarray) -> None:
    with pytest.raises(InputError, match="should be"):
        log_mel(samples, filters, CONSTANTS)


def test_log_mel_is_whispers() -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor()
    samples = chirp(16_000, 5.0)[0]
    for part in (samples, samples[:777]):
        expected = extractor(part, sampling_rate=16_000, return_tensors="np").input_features
        ours = log_mel(part, extractor.mel_filters.astype(np.float32), CONSTANTS)
        # Where PyTorch is installed the extractor calculates in single precision, which shows in
        # quiet bins beside loud ones; everywhere else the two agree much more closely.
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        assert np.abs(ours - expected).mean() < 1e-6


def wav_of_floats(path: Path, samples: np.ndarray) -> Path:
    """float32 (n,), 16 kHz."""
    data = samples.astype("<f4").tobytes()
    header = struct.pack("<IHHIIHH4sI", 16, 3, 1, 16_000, 64_000, 4, 32, b"data", len(data))
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + header + data)
    return path


def test_infinite_and_huge_floats_are_clipped(tmp_path: Path) -> None:
    samples = np.tile(np.array([np.inf, -np.inf, 1e30, -1e30, 65_537, 0.25], np.float32), 1000)
    with pytest.warns(SonicWarning, match="is clipped: 83.3 %"):
        sound = load_sound(wav_of_floats(tmp_path / "huge.wav", samples))
    expected = [32767, -32768, 32767, -32768, 32767, 8192]
    np.testing.assert_array_equal(sound.samples[:, 0], np.tile(expected, 1000))


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    samples = np.full(32_000, 0.25, np.float32)
    samples[31_999] = np.nan
    with pytest.raises(InputError, match="nan.wav holds samples that are not numbers"):
        load_sound(wav_of_floats(tmp_path / "nan.wav", samples))


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.m4a", "aac")])
def test_a_truncated_sound_is_noted(tmp_path: Path, name: str, codec: str) -> None:
    whole = encode(tmp_path / name, codec, chirp(48_000, 3.0), 48_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_sound(whole).duration_seconds == pytest.approx(3, abs=0.1)
    if codec == "aac":  # put the index first, as for players on the network: it is then whole
        with av.open(str(whole)) as source, av.open(str(tmp_path / "b.m4a"), "w", options={
            "movflags": "faststart"
        }) as target:  # fmt: skip
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        whole = tmp_path / "b.m4a"
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.warns(SonicWarning, match=r"is truncated: it should last 3.\d+ s, but only 1"):
        load_sound(cut)
    with warnings.catch_warnings():  # a part that is there may be asked for
        warnings.simplefilter("error")
        load_sound(cut, 0.5)


def test_opposed_channels_are_noted(tmp_path: Path) -> None:
    left = (chirp(16_000, 0.5)[0] * 20_000).astype(np.int16)
    with pytest.warns(SonicWarning, match="two channels that cancel each other"):
        load_sound(write_wav(tmp_path / "a.wav", np.stack([left, -left], axis=1), 16_000))


def test_limits_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", np.full(600_000, 4000), 8000)  # 75 s, 1.2 MB
    with pytest.raises(InputError, match="a.wav lasts 75 s; give at most 60 s"):
        load_sound(path, limits=IntakeLimits(sound_seconds=60))
    with pytest.raises(InputError, match="more than 1 MB of samples"):
        load_sound(path, limits=IntakeLimits(decoded_megabytes=1))
    with pytest.raises(InputError, match="at most 1 MB"):
        load_sound(path, limits=IntakeLimits(sound_megabytes=1))
    monkeypatch.setenv("SONIC_SOUND_SECONDS", "60")
    with pytest.raises(InputError, match="at most 60 s"):
        load_sound(path)
    assert load_sound(path, 59.5).duration_seconds == 59.5  # the part that is asked for is within the limit
    # A stream does not say how long it is: the limit holds while it is decoded.
    encode(tmp_path / "a.mp3", "libmp3lame", np.resize(chirp(8000, 5.0), (1, 600_000)), 8000)
    with pytest.raises(InputError, match="lasts more than 60 s"):
        load_sound(tmp_path / "a.mp3")


def test_a_long_sound_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 300_000).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", samples, 16_000)
    in_memory = load_sound(path)
    monkeypatch.setattr("sonic.media.audio._IN_MEMORY_BYTES", 100_000)
    (tmp_path / "spool").mkdir()
    on_disk = load_sound(path, spool_directory=tmp_path / "spool")
    assert not on_disk.samples.flags.writeable
    np.testing.assert_array_equal(on_disk.samples, in_memory.samples)
    np.testing.assert_array_equal(mono_samples(on_disk, 22_050), mono_samples(in_memory, 22_050))
    assert not list((tmp_path / "spool").iterdir())
    with pytest.raises(OutputError, match="nowhere"):
        load_sound(path, spool_directory=tmp_path / "nowhere")


def test_resampling_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (100_001, 2)).astype(np.int16)
    whole = mono_samples(Sound(samples, 44_100), 16_000)
    expected = soxr.resample((samples.sum(axis=1) / 65_536).astype(np.float32), 44_100, 16_000, quality="HQ")
    np.testing.assert_array_equal(whole[: len(expected)], expected)
    monkeypatch.setattr("sonic.media.audio._RESAMPLED_AT_ONCE", 777)
    np.testing.assert_array_equal(mono_samples(Sound(samples, 44_100), 16_000), whole)
