"""Trains sonic-tiny, a small talking-head model, on data made on the spot."""
