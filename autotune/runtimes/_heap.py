"""Freed memory stays with the process, so that the next call finds its pages mapped.

glibc returns large blocks to the kernel on ``free`` (M_MMAP_THRESHOLD) and trims its heap
(M_TRIM_THRESHOLD): a served model faults its activations' pages in anew at every call, about 1 us
per 4 KiB on a virtual machine, a tenth to a half of a call at a large batch.  Allocators other than
glibc's are left as they are.
"""

# Its source text is also part of the loaders of PyTorch's runtimes (`_torch`): keep it by itself.


def _keep_freed_memory() -> None:
    """Else glibc gives activations back, and every call faults their pages in anew."""
    import ctypes
    import sys

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself


keep_freed_memory = _keep_freed_memory
