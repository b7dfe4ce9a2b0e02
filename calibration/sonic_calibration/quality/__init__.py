"""Quality of a talking-head video: lip sync, identity, sharpness, flicker, difference from a reference."""
