"""Makes sonic-tiny, a small Sonic checkpoint trained from nothing on drawn faces and synthesized speech."""
