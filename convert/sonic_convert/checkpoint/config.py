"""Reads a checkpoint's configuration files and derives the runtime's constants from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sonic import bounded
from sonic.bundle.constants import Constants
from sonic.bundle.presets import UNTUNED, SpeedPresets
from sonic.errors import BundleError, InputError
from sonic.records import read_record
from sonic_convert.checkpoint.layout import CONFIGS

_REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "unet": (
        "addition_time_embed_dim",
        "block_out_channels",
        "cross_attention_dim",
        "down_block_types",
        "in_channels",
        "layers_per_block",
        "num_attention_heads",
        "out_channels",
        "projection_class_embeddings_input_dim",
        "up_block_types",
    ),
    "vae": (
        "block_out_channels",
        "down_block_types",
        "latent_channels",
        "layers_per_block",
        "scaling_factor",
    ),
    "image_encoder": (
        "hidden_size",
        "image_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
        "projection_dim",
    ),
    "scheduler": (
        "prediction_type",
        "timestep_type",
        "use_karras_sigmas",
        "sigma_min",
        "sigma_max",
    ),
    "audio_encoder": (
        "d_model",
        "encoder_attention_heads",
        "encoder_ffn_dim",
        "encoder_layers",
        "max_source_positions",
        "num_mel_bins",
    ),
}
# A hundred times what the published configurations have.
_SIZE_LIMIT, _LAYERS_LIMIT, _LIST_LIMIT = 1_000_000, 1_000, 1_000
_SCHEDULER_VALUES = {
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def read_configs(root: Path) -> dict[str, dict[str, Any]]:
    """The parsed files of `CONFIGS`, checked; the UNet's and the VAE's have `norm_num_groups`.

    Raises:
        InputError: a file is not JSON, or a value is missing or not one that Sonic can run with.
    """
    configs = {name: _read_config(root / file, name) for name, file in CONFIGS.items()}
    _check_scheduler(configs["scheduler"], root / CONFIGS["scheduler"])
    _check_widths(configs, root)
    for name in ("unet", "vae"):
        configs[name].setdefault("norm_num_groups", 32)  # fixed in diffusers
    return configs


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an InputError that names it."""
    values = bounded.read_json(path, InputError)
    if not isinstance(values, dict):
        raise InputError(f"{path}: the file holds a {type(values).__name__}, but should hold a JSON object")
    return values


def _read_config(path: Path, name: str) -> dict[str, Any]:
    values = read_json(path)
    missing = [key for key in _REQUIRED_KEYS[name] if key not in values]
    if missing:
        raise InputError(f"{path}: the value '{missing[0]}' should be there, but is missing")
    _check_sizes(values, path)
    return values


def _check_sizes(values: dict[str, Any], path: Path) -> None:
    """Refuse sizes of networks that no memory holds, before anything is made of them."""
    for key, value in values.items():
        limit = _LAYERS_LIMIT if "layers" in key else _SIZE_LIMIT
        parts = value if isinstance(value, list) else [value]
        if len(parts) > _LIST_LIMIT:
            raise InputError(
                f"{path}: '{key}' has {len(parts):,} values, but should have at most {_LIST_LIMIT}"
            )
        for part in parts:
            if isinstance(part, int | float) and abs(part) > limit:
                raise InputError(f"{path}: '{key}' is {part}, but should be at most {limit:,}")


def _check_scheduler(config: dict[str, Any], path: Path) -> None:
    for key, expected in _SCHEDULER_VALUES.items():
        if config[key] != expected:
            raise InputError(
                f"{path}: '{key}' is {config[key]!r}, but should be {expected!r}, the only "
                "sampling that Sonic was published with"
            )
    low, high = (_number(config, key, path) for key in ("sigma_min", "sigma_max"))
    if not 0 < low < high:
        raise InputError(
            f"{path}: 'sigma_min' is {low} and 'sigma_max' is {high}, but 0 < sigma_min < "
            "sigma_max should hold"
        )


def _check_widths(configs: dict[str, dict[str, Any]], root: Path) -> None:
    image, context = (
        configs["image_encoder"]["projection_dim"],
        configs["unet"]["cross_attention_dim"],
    )
    if image != context:
        raise InputError(
            f"{root / CONFIGS['image_encoder']}: 'projection_dim' is {image!r}, but should be "
            f"{context!r}, the UNet's 'cross_attention_dim'"
        )


def read_constants(configs: dict[str, dict[str, Any]], root: Path) -> Constants:
    """The runtime's default constants with the values of the configurations.

    Raises:
        InputError: a value cannot be used.
    """
    scheduler, vae = configs["scheduler"], configs["vae"]
    defaults = Constants()
    blocks = vae["block_out_channels"]
    if not isinstance(blocks, list) or not blocks:
        raise InputError(
            f"{root / CONFIGS['vae']}: 'block_out_channels' is {blocks!r}, but should be a list "
            "of channel counts"
        )

    def number(component: str, key: str) -> float:
        return _number(configs[component], key, root / CONFIGS[component])

    positions = int(number("audio_encoder", "max_source_positions"))
    audio = replace(defaults.audio, mel_bins=int(number("audio_encoder", "num_mel_bins")))
    expected = audio.window_samples // (2 * audio.hop_samples)  # the encoder halves the frames
    if positions != expected:
        raise InputError(
            f"{root / CONFIGS['audio_encoder']}: 'max_source_positions' is "
            f"{positions}, but should be {expected}, a window of 30 s"
        )
    return replace(
        defaults,
        audio=audio,
        portrait=replace(defaults.portrait, image_encoder_pixels=int(number("image_encoder", "image_size"))),
        sampler=replace(
            defaults.sampler,
            sigma_min=float(scheduler["sigma_min"]),
            sigma_max=float(scheduler["sigma_max"]),
        ),
        video=replace(
            defaults.video,
            latent_scale=float(number("vae", "scaling_factor")),
            latent_channels=int(number("vae", "latent_channels")),
            latent_stride_pixels=2 ** (len(blocks) - 1),
        ),
    )


def read_speeds(path: Path) -> SpeedPresets:
    """The presets of a file that 'sonic-convert tune --save' wrote; without it, those for any checkpoint.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if not path.exists():
        return UNTUNED
    try:
        text = bounded.read_bounded(path, bounded.JSON_LIMIT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the presets cannot be read ({reason})") from error
    return read_record(SpeedPresets, text, str(path), InputError, "write it with 'sonic-convert tune --save'")


def override_constants(constants: Constants, own: dict[str, Any], path: Path) -> Constants:
    """`constants` with the overrides of `Sonic/config.json`, whose content is `own`.

    Raises:
        InputError: an override is unknown or of the wrong type.
    """
    # Through JSON, because a Constants is read back from lists, not tuples.
    values = json.loads(json.dumps(constants.to_json()))
    parts = own.get("constants", {})
    if not isinstance(parts, dict):
        raise InputError(f"{path}: 'constants' is {parts!r}, but should be an object of objects")
    for part, changes in parts.items():
        if part not in values or not isinstance(changes, dict):
            raise InputError(
                f"{path}: 'constants.{part}' should be an object, and one of {', '.join(sorted(values))}"
            )
        for name, value in changes.items():
            if name not in values[part]:
                raise InputError(
                    f"{path}: 'constants.{part}.{name}' is unknown; it should be one of "
                    f"{', '.join(sorted(values[part]))}"
                )
            old = values[part][name]
            values[part][name] = value
            try:
                Constants.from_json(values, str(path))
            except BundleError as error:
                raise InputError(
                    f"{path}: 'constants.{part}.{name}' is {value!r}, but should look like {old!r}"
                ) from error
    return Constants.from_json(values, str(path))


def own_text(own: dict[str, Any], key: str, default: str, path: Path) -> str:
    """A string of `Sonic/config.json`, or `default` where it has none."""
    value = own.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}: '{key}' is {value!r}, but should be a string")
    return value


def _number(config: dict[str, Any], key: str, path: Path) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{path}: '{key}' is {value!r}, but should be a number above 0")
    return value
