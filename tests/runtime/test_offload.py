"""Does a model whose weights wait in host memory draw the same, and how much of it is on the device at once?

The processor stands in for the device where pictures are compared: what travels is copied all the same, and tells
itself apart by where it lies. The full-size models are counted on a device that torch only pretends (fake tensors).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import reverie
from reverie.adapters import lora
from reverie.adapters.control import Control, bind_controls
from reverie.checkpoints.families import FAMILIES
from reverie.codecs import slices
from reverie.codecs.image import WHOLE, ImageCodec
from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.pipeline import Pipeline
from reverie.requests.parts import Region
from reverie.requests.pictures import TextToImage
from reverie.runtime.offload import BLOCKS, OFFLOADS, Offloader, offloader_of
from reverie.runtime.transform import to_channels_last

BEAR = TextToImage(prompt="a bear", negative="red", seed=7, steps=3)
MODES = list(OFFLOADS)


def networks(system: Pipeline) -> list[nn.Module]:
    return [*system.text_encoders, system.unet, system.autoencoder]


def offloaded(system: Pipeline, mode: str) -> Pipeline:
    """Copy a system and keep the copy's weights in host memory, the processor being the device."""
    kept = copy.deepcopy(system)
    offloader = Offloader(torch.device("cpu"), OFFLOADS[mode])
    offloader.take(*networks(kept))
    return kept


class Watch:
    """Count the bytes of weights that are away from home, whenever any layer computes."""

    def __init__(self, system: Pipeline) -> None:
        self.peak, self.together = 0, set[frozenset[int]]()
        self.home = [{p: p.data_ptr() for p in network.parameters()} for network in networks(system)]
        for network in networks(system):
            for module in network.modules():
                if next(module.children(), None) is None:
                    module.register_forward_pre_hook(lambda *_: self.look())

    def look(self) -> None:
        away = [sum(p.nbytes for p, at in home.items() if p.data_ptr() != at) for home in self.home]
        self.peak = max(self.peak, sum(away))
        self.together.add(frozenset(index for index, nbytes in enumerate(away) if nbytes))


@pytest.mark.parametrize("kind", ["tiny", "tiny_xl"])
@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_the_same_to_the_bit(kind: str, mode: str, request: pytest.FixtureRequest) -> None:
    plain = request.getfixturevalue(kind)
    kept = offloaded(plain, mode)
    changed = BEAR.replace(clip_skip=2, cache_steps=2, tile="x"), BEAR.replace(merge_tokens=0.5)
    regions = (Region(prompt="an apple", negative="blue", box="left"),)
    for asked in (BEAR, *changed, BEAR.replace(perturbed_guidance=3.0, freeu=(1.5, 1.6, 0.9, 0.2), regions=regions)):
        assert kept.draw(asked)[0].tobytes() == plain.draw(asked)[0].tobytes()


def test_one_network_is_there_at_a_time(tiny_xl: Pipeline) -> None:
    kept = offloaded(tiny_xl, "networks")
    watch = Watch(kept)
    kept.draw(BEAR)
    assert watch.together >= {frozenset([0]), frozenset([1]), frozenset([2]), frozenset([3])}
    assert all(len(there) <= 1 for there in watch.together)


def test_two_blocks_are_there_at_a_time(tiny_xl: Pipeline) -> None:
    kept = offloaded(tiny_xl, "blocks")
    watch = Watch(kept)
    kept.draw(BEAR)
    sizes = sorted(
        sum(p.nbytes for p in block.parameters())
        for network in networks(kept)
        for block in network.modules()
        if isinstance(block, (*BLOCKS, Autoencoder))
    )
    whole = sum(p.nbytes for network in networks(kept) for p in network.parameters())
    assert 0 < watch.peak <= sizes[-1] + sizes[-2] < whole


def test_what_came_next_is_fetched_ahead(tiny: Pipeline) -> None:
    """From the second step on, the first parameter of a block is there before the block is called."""
    kept = offloaded(tiny, "blocks")
    blocks = [module for module in kept.unet.modules() if isinstance(module, BLOCKS)]
    home = {block: next(block.parameters()).data_ptr() for block in blocks}
    found: list[bool] = []
    for block in blocks:
        ahead = lambda block, _: found.append(next(block.parameters()).data_ptr() != home[block])  # noqa: E731
        block.register_forward_pre_hook(ahead, prepend=True)
    kept.draw(BEAR.replace(guidance=1.0, steps=2))
    first, second = found[: len(blocks)], found[len(blocks) :]
    assert not any(first)
    assert len(second) == len(blocks)
    assert all(second[1:])


@pytest.mark.parametrize("mode", MODES)
def test_a_lora_works_and_leaves_no_bit(mode: str, tiny: Pipeline, ink: Path) -> None:
    """Also where it comes and goes while the network is on the device."""
    plain, kept = copy.deepcopy(tiny), offloaded(tiny, mode)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])

    @torch.no_grad()
    def seen(system: Pipeline, told: reverie.system.Conditioning = tiny.encode_prompt(["a bear"])) -> Tensor:
        return system.network(told)(x, t)

    without, parameters = seen(plain), dict(kept.unet.named_parameters())
    assert torch.equal(seen(kept), without)
    with lora.apply(plain, [(ink, 1.0, 1.0)]), lora.apply(kept, [(ink, 1.0, 1.0)]):
        assert torch.equal(seen(kept), seen(plain))
        assert not torch.allclose(seen(kept), without, atol=1e-3)
        assert kept.draw(BEAR)[0].tobytes() == plain.draw(BEAR)[0].tobytes()
    assert torch.equal(seen(kept), without)
    assert all(parameter is parameters[name] for name, parameter in kept.unet.named_parameters())


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_a_controlnet_is_kept_as_its_model_is(mode: str, tiny: Pipeline) -> None:
    torch.manual_seed(1)
    network = ControlNet(ControlNetConfig(tiny.unet.config, hint_widths=(4, 4, 4, 4))).eval()
    for part in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        nn.init.normal_(part.weight, std=0.2)  # new ones are silent
    kept, travelling, picture = offloaded(tiny, mode), copy.deepcopy(network), tiny.draw(BEAR)[0]
    offloader = offloader_of(kept.unet)
    assert offloader is not None
    offloader.take(travelling)
    x, t, told = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), tiny.encode_prompt(["a bear"])
    theirs = bind_controls(tiny, [Control(network, picture)])(told)(x, t)
    steered = bind_controls(kept, [Control(travelling, picture)])(told)
    assert all(torch.equal(steered(x, t), theirs) for _ in range(3))


@torch.no_grad()
def test_slices_and_saving_see_every_weight(tiny: Pipeline, tmp_path: Path) -> None:
    kept = offloaded(tiny, "blocks")
    z = torch.randn(1, 4, 6, 8)
    for model, images in ((tiny, ImageCodec(tiny.autoencoder, 0)), (kept, ImageCodec(kept.autoencoder, 0))):
        assert images.decode(z).equal(slices.decode_in_strips(tiny.autoencoder, z / 0.18215).clamp(-1, 1)), model
    kept.save(tmp_path)
    again = reverie.load(tmp_path, device="cpu", fast=False)
    assert again.draw(BEAR)[0].tobytes() == tiny.draw(BEAR)[0].tobytes()


def test_where_there_is_no_other_memory_it_is_refused() -> None:
    with pytest.raises(ReverieError, match="offload is for GPUs with memory of their own, and this is cpu"):
        reverie.load(device="cpu", offload="blocks")


class Pretended(TorchFunctionMode):
    """Let a build of torch without CUDA pretend to copy to it, and attend as its kernels do, without a table."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.copy_:
            return args[0]
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].fake_device = args[1].fake_device
        if func is Tensor.to:
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
            device, dtype = device or args[0].device, dtype or args[0].dtype
            same = (device, dtype) == (args[0].device, args[0].dtype)
            return args[0] if same else torch.ops.aten._to_copy.default(args[0], device=device, dtype=dtype)
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func == Tensor.__setitem__:
            return None
        if func == Tensor.__getitem__:
            return taken(args[0], args[1] if isinstance(args[1], tuple) else (args[1],))
        return func(*args, **kwargs)


def taken(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """Index a tensor without asking its device."""
    if isinstance(index[0], Tensor):
        return torch.ops.aten.index.Tensor(x, list(index))
    axis = 0
    for one in index:
        if isinstance(one, slice):
            x = torch.ops.aten.slice.Tensor(x, axis, one.start, one.stop)
        elif one is None:
            x = x.unsqueeze(axis)
        else:
            x = x.select(axis, one)
        axis += one is None or isinstance(one, slice)
    return x


class Counted(TorchDispatchMode):
    """Count the bytes that live on the device, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            finalize(storage, self.gone, key, nbytes)

    def gone(self, key: int, nbytes: int) -> None:
        self.seen.remove(key)
        self.now -= nbytes


def unread(network: Any, kind: torch.dtype) -> Any:
    """Give a blueprint fake weights in host memory."""
    state = {name: torch.empty(tensor.shape, dtype=kind) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


@pytest.mark.parametrize(
    ("family", "side", "mode", "ceiling"),
    [
        ("sd15", 512, "blocks", 0.65),
        pytest.param("sd15", 512, "networks", 1.9, marks=pytest.mark.slow),
        pytest.param("sdxl", 1024, "blocks", 2.8, marks=pytest.mark.slow),
        pytest.param("sdxl", 1024, "networks", 5.6, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_full_models_stay_under_their_ceilings(family: str, side: int, mode: str, ceiling: float) -> None:
    """GB of weights and activations for a picture with guidance; CUDA's context and workspaces come on top."""
    found, device = FAMILIES[family], torch.device("cuda")
    half, kind = torch.half, torch.float32 if found.autoencoder.force_upcast else torch.half
    with FakeTensorMode(), Pretended(), Counted() as counted:
        towers = [unread(tower.part().blueprint(), half) for tower in found.towers]
        unet = unread(found.unet_part().blueprint(), half)
        autoencoder = unread(found.autoencoder_part().blueprint(), kind)
        offloader = Offloader(device, OFFLOADS[mode])
        offloader.take(*towers, unet, autoencoder)
        for tower in towers:
            tower(torch.zeros(2, 77, dtype=torch.long, device=device))
        x = torch.zeros(2, 4, side // 8, side // 8, dtype=half, device=device)
        context = torch.zeros(2, 77, found.unet.cross_attention_dim, dtype=half, device=device)
        told = (torch.zeros(2, 1280, dtype=half, device=device), torch.zeros(2, 6, device=device))
        for _ in range(2):
            unet(x, torch.zeros(2, device=device), context, *(told if found.unet.projection_input_dim else ()))
        autoencoder(Autoencoder.decode if side**2 <= WHOLE else slices.decode_in_strips, x[:1].to(kind))
    assert 0.95 * ceiling < counted.peak / 1e9 < ceiling


def test_kernels_keep_their_layout_on_the_way(tiny: Pipeline) -> None:
    laid = copy.deepcopy(tiny)
    to_channels_last(laid.unet)
    theirs, ours = (next(p.latents for p in one.stream(BEAR) if p.pictures) for one in (tiny, laid))
    assert torch.allclose(ours, theirs, atol=1e-4)
    kept, seen = offloaded(laid, "blocks"), []
    for module in kept.unet.modules():
        if isinstance(module, nn.Conv2d):
            look = lambda conv, _: seen.append(conv.weight.is_contiguous(memory_format=torch.channels_last))  # noqa: E731
            module.register_forward_pre_hook(look)
    kept.draw(BEAR)
    assert seen
    assert all(seen)
