"""From CUDA source to loaded kernels: a packaged cubin, a cached one, or one compiled by NVRTC.

A cubin is the machine code of one .cu file for one architecture. Those that the build made with
nvcc are in the package. NVRTC, which every CUDA build of torch brings, compiles the others on first
use. They are cached in ~/.cache/masktuning (or $XDG_CACHE_HOME/masktuning) under the hash of their
source, with a digest of their content.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from masktuning.ops.backends import cuda_source, extension

_DIGEST = hashlib.sha256().digest_size
_PACKAGE = Path(__file__).resolve().parent.parent.parent


class CubinError(RuntimeError):
    """The kernels cannot be had for a GPU; the message says why."""


def cache_folder() -> Path:
    """Where the cubins that were compiled on this machine are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "masktuning"


def packaged_folders() -> list[Path]:
    """Where a build puts its cubins: in this package, and in one installed alongside a checkout."""
    folders = [_PACKAGE / "cubins"]
    if module := extension.find():
        folders.append(Path(str(module.__file__)).resolve().parent / "masktuning" / "cubins")
    return folders


def packaged_cubin(file: str, arch: str) -> bytes | None:
    """The packaged cubin that runs on `arch`: of its major version, and its minor or an earlier."""
    major, minor = int(arch[3:-1]), int(arch[-1])
    for older in range(minor, -1, -1):
        for folder in packaged_folders():
            path = folder / cuda_source.cubin_name(file, f"sm_{major}{older}")
            if path.is_file():
                return path.read_bytes()
    return None


def cached_cubin(file: str, arch: str) -> bytes | None:
    """The cubin compiled here earlier, or None if there is none or its digest does not match."""
    path = _cache_path(file, arch)
    if not path.is_file():
        return None
    content = path.read_bytes()
    digest, cubin = content[:_DIGEST], content[_DIGEST:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


def compile_cubin(file: str, arch: str) -> bytes:
    """Compiles <file>.cu for `arch` with NVRTC and keeps the cubin.

    Raises:
        CubinError: if there is no NVRTC, or it cannot compile for `arch`.
    """
    library = nvrtc_library()
    if library is None:
        raise CubinError("no cubin for this GPU in the package, and no NVRTC to compile one")
    code, headers = cuda_source.sources()
    try:
        cubin, _, _ = extension.module().nvrtc_compile(
            library, f"{file}.cu", code[file], headers, arch
        )
    except RuntimeError as error:
        raise CubinError(str(error)) from error
    _keep(_cache_path(file, arch), hashlib.sha256(cubin).digest() + cubin)
    return cubin


@cache
def nvrtc_library() -> str | None:
    """The NVRTC that this torch brings, or another installed one, or None."""
    own = (torch.version.cuda or "").split(".")[0]
    majors = sorted(("12", "13"), key=lambda major: major != own)
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(path) for path in (spec and spec.submodule_search_locations) or ()]
    for major in majors:
        for folder in folders:
            for home in ("cuda_nvrtc", f"cu{major}"):
                path = folder / home / "lib" / f"libnvrtc.so.{major}"
                if path.is_file():
                    return str(path)
    return next((name for major in majors if _loads(name := f"libnvrtc.so.{major}")), None)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def load(device: int, arch: str, kernels: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Loads kernels on `device` and returns the driver's handle of each by name.

    `kernels` lists the kernels by the .cu file that they are in.

    Raises:
        CubinError: if there is no cubin for `arch` and none can be compiled.
    """
    handles: dict[str, int] = {}
    for file, names in kernels.items():
        cubin = packaged_cubin(file, arch) or cached_cubin(file, arch)
        try:
            module = extension.module().cuda_load(device, cubin) if cubin else None
        except RuntimeError:  # the driver refuses it: it is damaged, or of another toolkit
            module = None
        if module is None:
            try:
                module = extension.module().cuda_load(device, compile_cubin(file, arch))
            except RuntimeError as error:
                raise CubinError(f"{file} for {arch}: {error}") from error
        for name in names:
            handles[name] = extension.module().cuda_function(device, module, name)
    return handles


def describe() -> str:
    """Which cubins there are on this machine, in the package and in the cache, and which NVRTC."""
    files = cuda_source.sources()[0]
    current = cuda_source.cubin_name(next(iter(files)), "*")  # of this source, not an older one
    paths = [path for folder in packaged_folders() for path in folder.glob(current)]
    built = sorted({path.stem.rpartition("-")[2] for path in paths}, key=lambda arch: int(arch[3:]))
    kept = len(list(cache_folder().glob("*.cubin")))
    return (
        f"packaged for {', '.join(built) or 'no GPU'}; "
        f"{kept} in {cache_folder()}; NVRTC {nvrtc_library() or 'not found'}"
    )


def _cache_path(file: str, arch: str) -> Path:
    return cache_folder() / cuda_source.cubin_name(file, arch)


def _keep(path: Path, content: bytes) -> None:
    """Writes a cubin to the cache; a cache that cannot be written is a warning, not an error.

    The file is written elsewhere and then renamed, so another process never sees a part of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            partial.write_bytes(content)
            os.replace(partial, path)
    except OSError as error:
        warnings.warn(f"the compiled kernels are not kept: {error}", RuntimeWarning, stacklevel=2)
