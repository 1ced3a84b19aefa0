"""How networks compute: packed weights, int8, compilation, offloading, DeepCache, token merging."""

from reverie.runtime.int8 import quantize
from reverie.runtime.kernels import native
from reverie.runtime.transform import is_packed, limit_threads, pack, pack_after, spare_threads, unpack

__all__ = ["is_packed", "limit_threads", "native", "pack", "pack_after", "quantize", "spare_threads", "unpack"]
