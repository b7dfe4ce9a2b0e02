"""The noise schedule and the Euler step of a continuous v-prediction model.

Sources: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022),
equation 5 (sigmas) and algorithm 2 without churn (Euler); Salimans & Ho, "Progressive Distillation
for Fast Sampling of Diffusion Models" (2022), for v-prediction; diffusers' EulerDiscreteScheduler for
the timestep ``0.25 * ln(sigma)``.
"""

from __future__ import annotations

import math

import numpy as np

from sonic.bundle.constants import SamplerConstants


def karras_sigmas(steps: int, constants: SamplerConstants) -> np.ndarray:
    """Noise levels from `sigma_max` down to `sigma_min`, then zero: float32 (steps + 1,)."""
    rho = constants.karras_rho
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = constants.sigma_min ** (1 / rho), constants.sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return np.append(sigmas, 0.0).astype(np.float32)


def schedule_position(sigma: float, constants: SamplerConstants) -> float:
    """Where a noise level lies in the published schedule: 0 at its first level, 1 at its last."""
    rho = constants.karras_rho
    low, high = constants.sigma_min ** (1 / rho), constants.sigma_max ** (1 / rho)
    position: float = min(max((sigma ** (1 / rho) - high) / (low - high), 0.0), 1.0)
    return position


def model_timestep(sigma: float) -> np.ndarray:
    """The UNet's timestep input: float32 (1,)."""
    return np.array([0.25 * math.log(sigma)], np.float32)


def input_scale(sigma: float) -> float:
    """The factor by which noisy latents are multiplied before they are fed to the UNet."""
    return 1.0 / math.sqrt(sigma**2 + 1.0)


def derivative(latents: np.ndarray, prediction: np.ndarray, sigma: float) -> np.ndarray:
    """(latents - denoised) / sigma, the change of latents per noise level; from the UNet's v-prediction."""
    denoised = prediction * (-sigma / math.sqrt(sigma**2 + 1.0)) + latents / (sigma**2 + 1.0)
    return (latents - denoised) / sigma


def euler_step(latents: np.ndarray, prediction: np.ndarray, sigma: float, next_sigma: float) -> np.ndarray:
    """Latents at `next_sigma`, from those at `sigma` and the UNet's v-prediction; float32 of one shape."""
    return latents + derivative(latents, prediction, sigma) * (next_sigma - sigma)
