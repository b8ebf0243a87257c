"""The CUDA source that the package ships, and the hash that names what is compiled from it.

setup.py loads this file by its path, so it imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

OPS = ("mask_sampling", "token_substitution", "dual_cross_entropy")
ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
"""What a build with nvcc compiles for, where nvcc can; one image serves its whole major version."""

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def sources() -> tuple[dict[str, str], dict[str, str]]:
    """The text of each op's .cu file, and of the headers by the names that they are included by."""
    root = _PACKAGE / "csrc"
    if not root.is_dir():  # in a checkout it lies beside the package
        root = _PACKAGE.parent / "csrc"
    headers = [root / "philox.h", *sorted((root / "cuda").glob("*.cuh"))]
    return (
        {op: (root / "cuda" / f"{op}.cu").read_text(encoding="utf-8") for op in OPS},
        {path.name: path.read_text(encoding="utf-8") for path in headers},
    )


def source_hash(op: str) -> str:
    """16 hexadecimal digits that change with the source of `op` or any header."""
    code, headers = sources()
    text = "\0".join([code[op], *(f"{name}\0{headers[name]}" for name in sorted(headers))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_name(op: str, arch: str) -> str:
    """The file name of an image, in the package and in the cache."""
    return f"{op}-{source_hash(op)}-{arch}.cubin"
