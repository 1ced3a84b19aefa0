"""How networks compute: packed weights, int8, compilation, offloading, DeepCache, token merging."""

from reverie.runtime.int8 import quantize
from reverie.runtime.kernels import native
from reverie.runtime.transform import is_packed, limit_threads, one_thread, pack, pack_after, spare_threads, unpack
from reverie.runtime.weights import cast_to

__all__ = [
    "cast_to",
    "is_packed",
    "limit_threads",
    "native",
    "one_thread",
    "pack",
    "pack_after",
    "quantize",
    "spare_threads",
    "unpack",
]
