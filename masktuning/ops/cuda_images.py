"""From CUDA source to loaded kernels: a packaged image, a cached one, or NVRTC's.

An image (cubin) belongs to an op's source and an architecture. Those that the build made with nvcc
lie in the package; what NVRTC, which every CUDA build of torch brings, compiles here is kept in
~/.cache/masktuning (or $XDG_CACHE_HOME/masktuning) under the hash of the source, with a digest.
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

from masktuning.ops import cuda_source, native

_DIGEST = hashlib.sha256().digest_size
_PACKAGE = Path(__file__).resolve().parent.parent


class ImageError(RuntimeError):
    """There is no usable image of the kernels for a GPU, and why."""


def cache_folder() -> Path:
    """Where images that were compiled here are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "masktuning"


def packaged_folders() -> list[Path]:
    """Where a build puts its images: in the package, and in the one installed beside a checkout."""
    folders = [_PACKAGE / "cubins"]
    if extension := native.extension():
        folders.append(Path(str(extension.__file__)).resolve().parent / "masktuning" / "cubins")
    return folders


def packaged_image(op: str, arch: str) -> bytes | None:
    """The image that came with the package and runs on `arch`: its own, or an earlier minor's."""
    major, minor = int(arch[3:-1]), int(arch[-1])
    for older in range(minor, -1, -1):
        for folder in packaged_folders():
            path = folder / cuda_source.image_name(op, f"sm_{major}{older}")
            if path.is_file():
                return path.read_bytes()
    return None


def cached_image(op: str, arch: str) -> bytes | None:
    """The image that was compiled here before; None where there is none or its digest is wrong."""
    path = _cache_path(op, arch)
    if not path.is_file():
        return None
    content = path.read_bytes()
    digest, image = content[:_DIGEST], content[_DIGEST:]
    return image if hashlib.sha256(image).digest() == digest else None


def compile_image(op: str, arch: str) -> bytes:
    """Compiles `op` for `arch` with NVRTC and keeps the image.

    Raises:
        ImageError: if there is no NVRTC, or it cannot compile for `arch`.
    """
    library = nvrtc_library()
    if library is None:
        raise ImageError("no image for this GPU in the package, and no NVRTC to compile one")
    code, headers = cuda_source.sources()
    try:
        image, _, _ = native.module().nvrtc_compile(library, f"{op}.cu", code[op], headers, arch)
    except RuntimeError as error:
        raise ImageError(str(error)) from error
    _keep(_cache_path(op, arch), hashlib.sha256(image).digest() + image)
    return image


@cache
def nvrtc_library() -> str | None:
    """The NVRTC that this torch brings, or another that is installed; None for none."""
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
    """The driver's handle of every kernel, loaded on `device`; `kernels` lists them by op.

    Raises:
        ImageError: if there is no image for `arch` and none can be compiled.
    """
    handles: dict[str, int] = {}
    for op, names in kernels.items():
        image = packaged_image(op, arch) or cached_image(op, arch)
        try:
            module = native.module().cuda_load(device, image) if image else None
        except RuntimeError:  # one that the driver refuses: of another toolkit, or damaged
            module = None
        if module is None:
            try:
                module = native.module().cuda_load(device, compile_image(op, arch))
            except RuntimeError as error:
                raise ImageError(f"{op} for {arch}: {error}") from error
        for name in names:
            handles[name] = native.module().cuda_function(device, module, name)
    return handles


def describe() -> str:
    """Where images come from here: the package, the cache, NVRTC."""
    current = cuda_source.image_name(cuda_source.OPS[0], "*")  # of this source, not an older one
    paths = [path for folder in packaged_folders() for path in folder.glob(current)]
    built = sorted({path.stem.rpartition("-")[2] for path in paths}, key=lambda arch: int(arch[3:]))
    kept = len(list(cache_folder().glob("*.cubin")))
    return (
        f"packaged for {', '.join(built) or 'no GPU'}; "
        f"{kept} in {cache_folder()}; NVRTC {nvrtc_library() or 'not found'}"
    )


def _cache_path(op: str, arch: str) -> Path:
    return cache_folder() / cuda_source.image_name(op, arch)


def _keep(path: Path, content: bytes) -> None:
    """Written whole, then renamed: another process never sees a part. A full disk is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            partial.write_bytes(content)
            os.replace(partial, path)
    except OSError as error:
        warnings.warn(f"the compiled kernels are not kept: {error}", RuntimeWarning, stacklevel=2)
