"""``python3 generate.py --image=P --audio=A --duration=60 --resolution=1024 --steps=25 --output=V.mp4``

The same as ``sonic generate``, with the bundle "sonic-base" by default.
"""

from sonic.cli.generate import generate

if __name__ == "__main__":
    generate(default_map={"bundle": "sonic-base"})
