"""How is a network computed fast on a CPU? By a transformation of it, not by another network."""

from reverie.runtime.int8 import quantize
from reverie.runtime.kernels import native
from reverie.runtime.threads import limit_threads, spare_threads
from reverie.runtime.transform import pack, pack_after, packed, unpack

__all__ = ["limit_threads", "native", "pack", "pack_after", "packed", "quantize", "spare_threads", "unpack"]
