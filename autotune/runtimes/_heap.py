"""Keeps freed memory in the process, so that the next call has no page faults for it.

glibc returns large blocks to the kernel on ``free`` (M_MMAP_THRESHOLD) and trims its heap
(M_TRIM_THRESHOLD), so each call faults the pages of its activations in again: about 1 us per 4 KiB
on a virtual machine, a tenth to a half of a call at a large batch.  Has no effect on other
allocators.
"""

# Its source is copied into the loaders of `_torch`, so it may use nothing else of this module.


def _keep_freed_memory() -> None:
    """Keeps glibc from returning activations to the kernel, which costs page faults per call."""
    import ctypes
    import sys

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
        mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own


keep_freed_memory = _keep_freed_memory
