"""The CUDA source that the package ships, and the hash that names what is compiled from it.

setup.py loads this file by its path, so it imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
"""What a build with nvcc compiles for, where nvcc can; a cubin serves its whole major version."""

_PACKAGE = Path(__file__).resolve().parent.parent.parent


@cache
def sources() -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the .cu files by their names without the suffix, and of the headers by name."""
    root = _PACKAGE / "csrc"
    if not root.is_dir():  # in a checkout it is next to the package
        root = _PACKAGE.parent / "csrc"
    headers = [root / "philox.h", *sorted((root / "cuda").glob("*.cuh"))]
    files = sorted((root / "cuda").glob("*.cu"))
    return (
        {path.stem: path.read_text(encoding="utf-8") for path in files},
        {path.name: path.read_text(encoding="utf-8") for path in headers},
    )


def source_hash(file: str) -> str:
    """16 hexadecimal digits that change with the source of <file>.cu or of any header."""
    code, headers = sources()
    text = "\0".join([code[file], *(f"{name}\0{headers[name]}" for name in sorted(headers))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cubin_name(file: str, arch: str) -> str:
    """The file name of a cubin, in the package and in the cache."""
    return f"{file}-{source_hash(file)}-{arch}.cubin"
