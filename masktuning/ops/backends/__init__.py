"""The back ends of the ops: which exist on this machine, which is used, and how to force one.

    from masktuning.ops import backends

    with backends.use("reference"):
        ...
    MASKTUNING_BACKEND=cpp python -m masktuning.train

`select` chooses, `extension` loads the C++ module, `cubins` and `cuda_source` provide the compiled
CUDA kernels, `launch` starts CUDA kernels and `triton` starts Triton kernels. What a back end does
for an op is in the op's own file, which registers it with `select.register`.
"""

from masktuning.ops.backends.select import (
    CUDA_SWITCH,
    ENVIRONMENT,
    NAMES,
    BackendError,
    available,
    check,
    choose,
    describe,
    missing_gpu_code,
    use,
)

__all__ = [
    "CUDA_SWITCH",
    "ENVIRONMENT",
    "NAMES",
    "BackendError",
    "available",
    "check",
    "choose",
    "describe",
    "missing_gpu_code",
    "use",
]
