"""How networks compute: packed weights, int8, compilation, offloading, DeepCache, token merging."""

from reverie.runtime.int8 import quantize
from reverie.runtime.kernels import native
from reverie.runtime.transform import limit_threads, pack, pack_after, packed, spare_threads, unpack

__all__ = ["limit_threads", "native", "pack", "pack_after", "packed", "quantize", "spare_threads", "unpack"]
