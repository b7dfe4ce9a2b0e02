"""Is a bundle, as this machine runs it, what PyTorch computed when it was made? For a deployment script.

    python examples/verify_bundle.py sonic-tiny && systemctl restart talking-heads

PyTorch is not needed: the bundle carries inputs with PyTorch's outputs. 'sonic verify' prints a table.
Exit codes: 0 when everything is within its tolerance, 1 when something is not, 2 for an unusable bundle.
"""

from __future__ import annotations

import argparse
import sys

import sonic
from sonic.verification.verify import verify_bundle


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify a bundle on this machine.")
    parser.add_argument("bundle", nargs="?", default="sonic-tiny", help="its name or path (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads for one operator (the engine's choice)")
    arguments = parser.parse_args()

    try:
        verification = verify_bundle(sonic.load_model(arguments.bundle, threads=arguments.threads))
    except sonic.SonicError as error:
        print(error, file=sys.stderr)
        return 2
    for submodel in verification.submodels:
        verdict = "passed" if submodel.passed else "FAILED"
        print(f"{submodel.name}: {verdict}, {submodel.relative_l2:.1e} of at most {submodel.tolerance:.1e}")
    clip = verification.clip
    if clip.psnr_db is None:
        print(f"clip: FAILED, {clip.problem}")
    else:
        verdict = "passed" if clip.passed else "FAILED"
        print(f"clip: {verdict}, {clip.psnr_db:.1f} dB of at least {clip.minimum_psnr_db:.1f} dB")
    return 0 if verification.passed else 1


if __name__ == "__main__":
    sys.exit(main())
