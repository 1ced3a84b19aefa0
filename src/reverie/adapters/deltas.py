"""What does an adapter add to a weight? LoRA, its kin of LyCORIS, and DoRA, each as one formula.

Sources: LoRA 2106.09685; LyCORIS 2309.14859 (LoHa is FedPara 2108.06098, LoKr is KronA 2212.10650); DoRA 2402.09353;
(IA)3 2205.05638. The layouts of the tensors are those of KohakuBlueleaf/LyCORIS and kohya-ss/sd-scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Parts = Mapping[str, Tensor]
"""An adapter's tensors for one layer, in float32, by the roles of `lora_keys`."""

BIAS = {"alpha", "diff_b", "b_norm"}


def weight_delta(parts: Parts, weight: Float[Tensor, ...]) -> Float[Tensor, ...] | None:
    """Return what an adapter of strength 1 adds to a weight; None where it only knows the bias.

    Raises RuntimeError where the shapes do not fit the weight, and KeyError where a tensor is missing.
    """
    if parts.keys() <= BIAS:
        return None
    kind = next((kind for kind in KINDS if kind in parts), "up")
    delta = KINDS[kind](parts, weight)
    if "dora_scale" in parts:
        return decomposed(weight, delta, parts["dora_scale"])
    return decomposed(weight, delta, parts["magnitude"].flatten()) if "magnitude" in parts else delta


def bias_delta(parts: Parts) -> Float[Tensor, ...] | None:
    """Return what an adapter of strength 1 adds to a bias."""
    return parts.get("diff_b", parts.get("b_norm"))


def _scale(parts: Parts, rank: int) -> float:
    """Return alpha / rank; an adapter without alpha has the rank itself."""
    return parts["alpha"].item() / rank if "alpha" in parts else 1.0


def _lora(parts: Parts, weight: Tensor) -> Tensor:
    """B A; for convolutions with a core in the middle, sum over p and q of B[o p] C[p q h w] A[q i]."""
    down, up = parts["down"], parts["up"]
    if "mid" in parts:
        delta = torch.einsum("op,pqhw,qi->oihw", up.flatten(1), parts["mid"], down.flatten(1))
    else:
        delta = up.flatten(1) @ down.flatten(1)
    return _scale(parts, len(down)) * delta.reshape(weight.shape)


def _core(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Contract a core with its two factors: sum over p and q of left[p o] core[p q h w] right[q i]."""
    return torch.einsum("po,pqhw,qi->oihw", left, core, right)


def _loha(parts: Parts, weight: Tensor) -> Tensor:
    """(A1 B1) * (A2 B2), element by element."""
    (a1, b1), (a2, b2) = ((parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]) for n in (1, 2))
    if "hada_t1" in parts:
        delta = _core(parts["hada_t1"], a1, b1) * _core(parts["hada_t2"], a2, b2)
    else:
        delta = (a1 @ b1.flatten(1)) * (a2 @ b2.flatten(1))
    return _scale(parts, len(b1)) * delta.reshape(weight.shape)


def _lokr(parts: Parts, weight: Tensor) -> Tensor:
    """The Kronecker product of W1 and W2, either of which may be a product itself; whole ones have no scale."""
    first, second = parts.get("lokr_w1"), parts.get("lokr_w2")
    rank = None
    if first is None:
        first, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], len(parts["lokr_w1_b"])
    if second is None:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        second, rank = _core(parts["lokr_t2"], a, b) if "lokr_t2" in parts else a @ b.flatten(1), len(b)
    delta = torch.kron(first, second.flatten(1)).reshape(weight.shape)
    return delta if rank is None else _scale(parts, rank) * delta


def _full(role: str) -> Callable[[Parts, Tensor], Tensor]:
    """The whole difference."""
    return lambda parts, weight: parts[role].reshape(weight.shape)


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    """Each row of the weight times a number, or each column, where the input is what is scaled."""
    on_input = "on_input" in parts and bool(parts["on_input"].item())
    rows = parts["ia3"].reshape(1, -1) if on_input else parts["ia3"].reshape(-1, 1)
    return (weight.flatten(2) * rows[..., None] if weight.ndim > 2 else weight * rows).reshape(weight.shape)


# By the tensor that each kind cannot do without.
KINDS: dict[str, Callable[[Parts, Tensor], Tensor]] = {
    "up": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "diff": _full("diff"),
    "w_norm": _full("w_norm"),
    "ia3": _ia3,
}


def decomposed(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """Return DoRA's change: W + delta brought to the learned magnitude, less W.

    The norm is that of each output where the magnitude's first axis is theirs, as in peft; else of each input.
    """
    merged = weight + delta
    outputs, dims = weight.shape[0], merged.ndim
    if len(magnitude) == outputs:
        norm = merged.flatten(1).norm(dim=1).reshape(-1, *[1] * (dims - 1))
    else:
        norm = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (dims - 2))
    return magnitude.reshape(norm.shape) / norm * merged - weight
