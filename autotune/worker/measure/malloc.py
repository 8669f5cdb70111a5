"""Keep freed memory in the process, so that the next call finds its pages mapped.

    call: allocate activations -> free them -> (glibc returns them to the kernel)
    next call: each page is faulted in and zeroed again, about 1 us per 4 KiB on a virtual machine

glibc returns large blocks on ``free`` (M_MMAP_THRESHOLD) and trims its heap (M_TRIM_THRESHOLD): a
served model pays for that at every call, and by an amount that depends on what else is on the heap.
The loaders of PyTorch's runtimes do the same.

What this does not know: allocators other than glibc's, which are left as they are.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt, from malloc.h."""


def keep() -> bool:
    """Never trim the heap, never mmap single blocks; False where the allocator is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
