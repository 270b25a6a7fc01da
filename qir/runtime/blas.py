"""Numpy's matrix products on one thread, so that they come out the same on every machine's number of threads.

A BLAS divides a product among its threads, and its blocks, so the order of additions and the last bits, depend on how
many there are: from a few hundred columns on the same Hessian gives other codes with two threads than with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_blas_thread"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS inside of the block, as many as before behind it; the whole process is concerned."""
    import numpy  # noqa: F401 - only a library that is loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
