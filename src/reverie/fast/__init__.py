"""How is a network computed fast on a CPU? By a transformation of it, not by another network."""

from reverie.fast.threads import limit_threads
from reverie.fast.transform import pack, pack_after, packed, unpack

__all__ = ["limit_threads", "pack", "pack_after", "packed", "unpack"]
