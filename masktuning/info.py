"""What is installed here and what each op would use.

python -m masktuning.info
"""

from __future__ import annotations

import os
import platform
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.installed import version_of
from masktuning.config.parser import run_command, wants_help

_PACKAGES = ("masktuning", "torch", "transformers", "datasets")


def gather() -> dict[str, Any]:
    """Versions, devices, and the back ends with the reasons why some are unavailable."""
    import torch

    from masktuning.ops import backends
    from masktuning.ops.backends import cubins, extension

    module = extension.find()
    return {
        "python": platform.python_version(),
        **{name: version_of(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "masktuning_C": dict(module.build_info()) if module else None,
        "backends": dict(backends.available()),
        "cuda_cubins": cubins.describe(),
        "forced": os.environ.get(backends.ENVIRONMENT, "auto"),
    }


def _gpu(index: int) -> str:
    import torch

    from masktuning.ops import backends

    major, minor = torch.cuda.get_device_capability(index)
    missing = backends.missing_gpu_code((major, minor), torch.cuda.get_arch_list())
    note = f"; {missing}" if missing else ""
    return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor}{note})"


def main(argv: list[str]) -> None:
    if wants_help(argv):
        print((__doc__ or "").strip())
        return
    if argv:
        raise UsageError(f"info takes no arguments, so not {argv[0]!r}")
    facts = gather()
    for name in ("masktuning", "python", "torch", "transformers", "datasets", "threads"):
        print(f"{name:14s}{facts[name]}")
    print(f"{'gpus':14s}{', '.join(facts['gpus']) or 'none'}")
    built = facts["masktuning_C"]
    if built:
        print(f"{'masktuning_C':14s}g++ {built.get('compiler')}; code for {built['processors']}")
    print(f"{'CUDA cubins':14s}{facts['cuda_cubins']}")
    print("\nback ends")
    for name, reason in facts["backends"].items():
        print(f"  {name:12s}{reason or 'available'}")
    from masktuning.ops import backends

    print(f"  {backends.ENVIRONMENT}={facts['forced']}")
    try:
        rows = backends.describe()
    except backends.BackendError as error:  # the one that the environment names is not here
        raise UsageError(str(error)) from None
    print("\nop                        device  uses")
    for row in rows:
        why = f"  ({row['why']})" if row["why"] else ""
        print(f"  {row['op']:24s}{row['device']:8s}{row['backend']}{why}")


if __name__ == "__main__":
    run_command(main)
