"""Stand-ins for packages that SGLang imports but that a machine without CUDA cannot have."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_mmsr1.procs import patches


def use_sgl_kernel() -> None:
    """Put our `sgl_kernel` on this process's import path, unless an installed one brings CPU operators.

    The installed one usually does not: its wheel holds CUDA objects, and either fails to import or lacks what the CPU path
    looks up.
    """
    import torch

    try:
        import sgl_kernel  # noqa: F401
    except (ImportError, OSError):
        usable = False
    else:
        usable = hasattr(torch.ops.sgl_kernel, "rmsnorm_cpu")
    if usable:
        return
    patches.check("sgl-kernel-on-cpu")
    for name in [n for n in sys.modules if n.split(".")[0] == "sgl_kernel"]:
        del sys.modules[name]
    sys.path.insert(0, str(Path(__file__).parent))
