"""What an adapter adds to a weight: LoRA, its kin of LyCORIS and peft, and DoRA, each as one formula.

Sources: LoRA 2106.09685; rank-stabilised LoRA 2312.03732; LyCORIS 2309.14859 (LoHa is FedPara 2108.06098, LoKr is KronA
2212.10650); DoRA 2402.09353; (IA)3 2205.05638; GLoRA 2306.07967; OFT 2306.07280; BOFT 2311.06243. The layouts of the
tensors are those of KohakuBlueleaf/LyCORIS, kohya-ss/sd-scripts, huggingface/peft and Nerogar/OneTrainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Parts = Mapping[str, Tensor]
"""An adapter's tensors for one layer, in float32, by the names of `adapter_keys`.

`scale` stands beside them where something else than alpha / rank multiplies the change, `neumann` where peft's OFT says
how many terms of the series it takes (0: the inverse itself).
"""

BIAS = {"alpha", "scale", "diff_b", "b_norm", "up_bias"}


@dataclass(frozen=True)
class DeltaKind:
    """Hold a formula and the parts that it cannot do without. `change(parts, weight)` is what strength 1 adds."""

    needs: frozenset[str]
    change: Callable[[Parts, Tensor], Tensor]


def kind_of(parts: Parts | Mapping[str, str]) -> DeltaKind | None:
    """Return the formula for a layer's parts; None where they are not enough for any."""
    return next((kind for kind in KINDS if kind.needs <= parts.keys()), None)


def is_whole(parts: Mapping[str, str]) -> bool:
    """Tell whether a layer's parts are enough to change its weight, or know its bias alone."""
    return kind_of(parts) is not None or (parts.keys() <= BIAS and bool(parts.keys() & {"diff_b", "b_norm"}))


def weight_delta(parts: Parts, weight: Float[Tensor, ...], strength: float = 1.0) -> Float[Tensor, ...] | None:
    """Return what an adapter of a strength adds to a weight; None where it only knows the bias.

    BOFT's strength takes each of its rotations so far, as LyCORIS does; all others' multiplies the change. Raises
    RuntimeError where the shapes do not fit the weight, and KeyError where a tensor is missing.
    """
    if parts.keys() <= BIAS:
        return None
    kind = kind_of(parts)
    if kind is None:
        raise KeyError(", ".join(parts))
    if "oft_blocks" in parts and parts["oft_blocks"].ndim == 4:
        return _boft(parts, weight, strength)
    delta = kind.change(parts, weight)
    if "dora_scale" in parts:
        delta = dora_delta(weight, delta, parts["dora_scale"])
    elif "magnitude" in parts:
        delta = dora_delta(weight, delta, parts["magnitude"].flatten())
    return strength * delta


def bias_delta(parts: Parts, bias: Float[Tensor, ...] | None = None) -> Float[Tensor, ...] | None:
    """Return what an adapter of strength 1 adds to a bias."""
    if "up_bias" in parts:
        return _scale(parts, len(parts["down"])) * parts["up_bias"]
    if "ia3_l" in parts:  # peft scales whole outputs
        return None if bias is None or _on_input(parts) else bias * (parts["ia3_l"].flatten() - 1)
    return parts.get("diff_b", parts.get("b_norm"))


def _scale(parts: Parts, rank: int) -> float:
    """Return alpha / rank, or what stands in its place; an adapter without alpha has the rank itself."""
    if "scale" in parts:
        return parts["scale"].item()
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
    """The Kronecker product of W1 and W2, either of which may be a product itself; of whole ones alpha says nothing."""
    first, second = parts.get("lokr_w1"), parts.get("lokr_w2")
    rank = None
    if first is None:
        first, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], len(parts["lokr_w1_b"])
    if second is None:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        second, rank = _core(parts["lokr_t2"], a, b) if "lokr_t2" in parts else a @ b.flatten(1), len(b)
    delta = torch.kron(first, second.flatten(1)).reshape(weight.shape)
    if rank is None:
        return delta * parts["scale"] if "scale" in parts else delta
    return _scale(parts, rank) * delta


def _glora(parts: Parts, weight: Tensor) -> Tensor:
    """W A1 A2 + B1 B2, with a core between the last two where there is one; LyCORIS 1 wrote W A2 A1 + B2 B1."""
    a1, a2, b1, b2 = (parts[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if len(a1) != weight.shape[1]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    through = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    beside = torch.einsum("op,pqhw,qi->oihw", b1, parts["bm"], b2) if "bm" in parts else b1 @ b2
    return _scale(parts, a1.shape[1]) * (through + beside.reshape(weight.shape))


def _rotations(parts: Parts, weight: Tensor) -> Tensor:
    """Return Cayley's rotations of skew blocks, whose norm alpha holds to alpha * outputs: (I + Q) (I - Q)^-1."""
    skew = parts["oft_blocks"] - parts["oft_blocks"].mT
    bound = parts["alpha"].item() * len(weight) if "alpha" in parts else 0.0
    norm = skew.norm().item() + 1e-8
    if 0 < bound < norm:
        skew = skew * bound / norm
    identity = torch.eye(skew.shape[-1], device=skew.device)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def _rescale(parts: Parts, rotated: Tensor, strength: float = 1.0) -> Tensor:
    return rotated * (1 + strength * (parts["rescale"] - 1)) if "rescale" in parts else rotated


def _oft(parts: Parts, weight: Tensor) -> Tensor:
    """Rotate the outputs, block by block: R^T W."""
    rotations = _rotations(parts, weight)
    blocks = weight.unflatten(0, rotations.shape[:2])
    rotated = torch.einsum("knm,kn...->km...", rotations, blocks).flatten(0, 1)
    return _rescale(parts, rotated) - weight


def _boft(parts: Parts, weight: Tensor, strength: float = 1.0) -> Tensor:
    """Rotate the outputs in several stages, the i-th mixing within blocks of 2^i: a butterfly."""
    rotations = _rotations(parts, weight)
    size = rotations.shape[-1]
    identity, rotated = torch.eye(size, device=weight.device), weight
    for stage, rotation in enumerate(rotations):
        half = 2**stage * size // 2
        pairs = rotated.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        mixed = torch.einsum("bij,bj...->bi...", torch.lerp(identity.expand_as(rotation), rotation, strength), pairs)
        rotated = mixed.flatten(0, 1).unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
    return _rescale(parts, rotated, strength) - weight


def _peft_oft(parts: Parts, weight: Tensor) -> Tensor:
    """Rotate the inputs, block by block: W R^T, the blocks told by their upper triangles (peft, OneTrainer).

    R is the first terms of a series for Cayley's rotation, or, where peft says so, (I - Q) (I + Q)^-1 itself. A single
    block is shared. OneTrainer says nothing of the series, rotates kernels by R instead of R^T, and its scaled OFT
    divides by 2 sqrt(size - 1).
    """
    upper = parts["oft_R"]
    size = (1 + math.isqrt(1 + 8 * upper.shape[1])) // 2
    rows, columns = torch.triu_indices(size, size, 1)
    skew = upper.new_zeros(len(upper), size, size)
    skew[:, rows, columns] = upper / (2 * math.sqrt(size - 1)) if "scaled_oft" in parts else upper
    skew = skew - skew.mT
    identity = torch.eye(size, device=skew.device)
    terms = int(parts["neumann"].item()) if "neumann" in parts else 5
    rotations = _series(skew, terms) if terms else (identity - skew) @ torch.linalg.inv(identity + skew)
    if weight.ndim == 2 or "neumann" in parts:
        rotations = rotations.mT
    inputs = weight.flatten(1).unflatten(1, (-1, size))
    rotated = torch.einsum("ork,rkc->orc", inputs, rotations.expand(inputs.shape[1], -1, -1))
    return rotated.reshape(weight.shape) - weight


def _series(skew: Tensor, terms: int) -> Tensor:
    """I + 2 Q + 2 Q^2 + ... + Q^n: of more than two terms the last is taken once, and is at least the third power."""
    total, power = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew), skew
    highest = max(terms - 1, 3) if terms > 2 else terms - 1
    for exponent in range(1, highest + 1):
        total = total + (power if exponent == highest and terms > 2 else 2 * power)
        power = power @ skew
    return total


def _peft_boft(parts: Parts, weight: Tensor) -> Tensor:
    """Rotate the inputs in stages and scale the outputs: s W B^T (peft)."""
    blocks = parts["boft_R"]
    skew = (blocks - blocks.mT) / 2
    identity, half = torch.eye(blocks.shape[-1], device=blocks.device), blocks.shape[-1] // 2
    rotations = (identity - skew) @ torch.linalg.inv(identity + skew)
    rotated = weight.flatten(1).T
    for stage, rotation in enumerate(rotations):
        # P R P^T, where P sets the even runs of half a block before the odd ones, within blocks of 2^stage.
        runs = rotated.unflatten(0, (-1, 2, 2**stage, half)).transpose(1, 2)
        mixed = torch.einsum("kij,kjo->kio", rotation, runs.flatten(0, 3).unflatten(0, rotation.shape[:2]))
        rotated = mixed.flatten(0, 1).unflatten(0, (-1, 2**stage, 2, half)).transpose(1, 2).flatten(0, 3)
    return (rotated.T * parts["boft_s"].reshape(-1, 1)).reshape(weight.shape) - weight


def _full(role: str) -> Callable[[Parts, Tensor], Tensor]:
    """The whole difference."""
    return lambda parts, weight: parts[role].reshape(weight.shape)


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    """Each row of the weight times a number, or each column, where the input is what is scaled (LyCORIS)."""
    return _each(weight, parts["ia3"].flatten(), on_input=_on_input(parts))


def _peft_ia3(parts: Parts, weight: Tensor) -> Tensor:
    """Each row of the weight, or each column, multiplied by a number (peft)."""
    return _each(weight, parts["ia3_l"].flatten() - 1, on_input=_on_input(parts))


def _on_input(parts: Parts) -> bool:
    """Tell what (IA)3 scales: as peft's config says, else a row of numbers is the input's."""
    return bool(parts["on_input"].item()) if "on_input" in parts else len(parts["ia3_l"]) == 1


def _each(weight: Tensor, factors: Tensor, *, on_input: bool) -> Tensor:
    return weight * factors.reshape(1 if on_input else -1, -1 if on_input else 1, *[1] * (weight.ndim - 2))


# The first whose needs are there counts.
KINDS = tuple(
    DeltaKind(frozenset(needs.split()), change)
    for needs, change in (
        ("down up", _lora),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", _loha),
        *(
            (f"{first} {second}", _lokr)
            for first in ("lokr_w1", "lokr_w1_a lokr_w1_b")
            for second in ("lokr_w2", "lokr_w2_a lokr_w2_b")
        ),
        ("a1 a2 b1 b2", _glora),
        ("oft_blocks", _oft),
        ("oft_R", _peft_oft),
        ("boft_R boft_s", _peft_boft),
        ("diff", _full("diff")),
        ("w_norm", _full("w_norm")),
        ("ia3 on_input", _ia3),
        ("ia3_l", _peft_ia3),
    )
)


def dora_delta(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
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
