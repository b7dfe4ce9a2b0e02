"""Telling what kind of picture a file is by its first bytes."""

from __future__ import annotations

#: What is read, with the name that Pillow (or pi_heif) has for it.
ACCEPTED = ("PNG", "JPEG", "WEBP", "HEIF", "AVIF")
ACCEPTED_TEXT = "a PNG, JPEG, WebP, HEIC or AVIF file"
#: How many bytes are needed.
HEAD_BYTES = 64

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
# Formats that people do try, to name them; none of these is read.
_OTHERS = (
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"),
    (b"MM\0+", "a TIFF picture"),
    (b"BM", "a BMP picture"),
    (b"8BPS", "a Photoshop document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"%PDF", "a PDF document"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document or SVG drawing"),
    (b"<!DOCTYPE", "an HTML or SVG document"),
    (b"<html", "an HTML document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1a\x45\xdf\xa3", "a video"),
)


def picture_format(head: bytes) -> str | None:
    """One of `ACCEPTED`, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(head)
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else None


def other_format(head: bytes) -> str:
    """What a file seems to be that is not accepted: "a GIF picture"; empty if nothing known."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, name in _OTHERS:
        if head.startswith(start) or (start.startswith(b"<") and text.lower().startswith(start.lower())):
            return name
    return "a video or sound" if _brands(head) or head.startswith((b"RIFF", b"OggS", b"ID3", b"fLaC")) else ""


def _brands(head: bytes) -> list[bytes]:
    """The brands of an ISO media file (HEIC, AVIF, MP4): the main one and the compatible ones."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))]
