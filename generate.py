"""``python3 generate.py --image=P --audio=A --duration=60 --resolution=1024 --steps=25 --output=V.mp4``

The same as ``sonic generate``, with the bundle "sonic-base" by default.
"""

import sys

from sonic.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]], default_map={"generate": {"bundle": "sonic-base"}})
