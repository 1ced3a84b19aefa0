"""Do parts of a picture follow prompts of their own, at every size, and all of it the plain prompt where it is one?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as TheirAttention
from PIL import Image
from torch import Tensor

from reverie.adapters.ip_adapter import ImagePrompt, bind_image_prompts, cross_attentions
from reverie.cli.ask import parse_region
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode
from reverie.generate.explain import explain
from reverie.generate.image import stream
from reverie.generate.regions import bind_regions, coverage, shares, with_regions
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.requests.parts import Region
from reverie.requests.pictures import Inpaint, TextToImage
from reverie.requests.records import from_metadata
from reverie.requests.templates import Wildcards, draw_prompts
from reverie.runtime import pack
from reverie.system import Conditioning, RegionPrompt

HALVES = (Region(prompt="a bear", box="left"), Region(prompt="an apple", box="right"))
WHOLE = (Region(prompt="a bear", box=(0, 0, 1, 1)),)
ASKED = {"seed": 3, "steps": 3}


def said(system: Pipeline, regions: tuple[Region, ...], prompt: str = "") -> Conditioning:
    """Encode a request's prompts as they stand at the first step: a row to keep away from and one to go towards."""
    prompts = encode(system, TextToImage(prompt=prompt, regions=regions))
    towards = prompts.positive[0].at(0)
    joined = prompts.negative.at(0).cat(towards)
    return replace(joined, prompted=torch.tensor([0.0, 1.0]))


def latents(rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4, 4, 4, generator=torch.Generator().manual_seed(seed)), torch.full((rows,), 501.0)


def test_coverage_is_the_part_of_each_cell_that_a_box_covers() -> None:
    covered = coverage(Region(prompt="", box=(0.25, 0, 1, 0.5)))
    assert torch.equal(covered(1, 2), torch.tensor([[0.25, 0.5]]))
    assert torch.equal(covered(2, 4), torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0.0]]))
    mask = Image.new("L", (64, 32))
    mask.paste(255, (16, 0, 64, 16))
    for size in ((1, 2), (2, 4), (8, 16)):
        assert torch.equal(coverage(Region(prompt="", mask=mask))(*size), covered(*size))


def test_shares_are_of_one_whole() -> None:
    def prompts(*asked: tuple[Any, float]) -> list[RegionPrompt]:
        return [RegionPrompt(torch.zeros(1, 2, 3), coverage(Region(prompt="", box=box)), w) for box, w in asked]

    thirds = shares(prompts(*((f"column{k}/3", 1.0) for k in (1, 2, 3))), 7, 5)
    assert torch.equal(thirds[0], torch.zeros(7, 5))
    assert (thirds.sum(0) - 1).abs().max() < 1e-6
    assert torch.equal(thirds[3], thirds[1].flip(1))
    part = shares(prompts(("left", 0.8)), 2, 2)
    assert torch.allclose(part[:, 0], torch.tensor([[0.2, 1.0], [0.8, 0.0]]))
    over = shares(prompts(("left", 3.0), ("0,0,1,1", 1.0)), 1, 2)
    assert torch.equal(over[:, 0], torch.tensor([[0, 0], [0.75, 0], [0.25, 1.0]]))


class Coupled:
    """Diffusers' attention with each prompt's answer laid into its half: an independent attention couple.

    `halves` are the left and right prompts of each row that has some.
    """

    def __init__(self, halves: dict[int, list[Tensor]], strength: float) -> None:
        self.halves, self.strength = halves, strength

    def __call__(self, attn: TheirAttention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        def answer(context: Tensor) -> Tensor:
            parts = [attn.head_to_batch_dim(t) for t in (attn.to_q(hidden_states), attn.to_k(context))]
            values = attn.head_to_batch_dim(attn.to_v(context))
            return attn.batch_to_head_dim(attn.get_attention_scores(*parts) @ values)

        base = answer(encoder_hidden_states)
        side = int(base.shape[1] ** 0.5)
        mixed = base.clone().view(2, side, side, -1)
        for row, contexts in self.halves.items():
            for context, columns in zip(contexts, (slice(0, side // 2), slice(side // 2, side)), strict=True):
                own = answer(context.expand(2, -1, -1))[row].view(side, side, -1)
                mixed[row, :, columns] = self.strength * own[:, columns] + (1 - self.strength) * mixed[row, :, columns]
        return attn.to_out[0](mixed.flatten(1, 2))


@pytest.mark.parametrize(("strength", "away"), [(1.0, (None, None)), (0.7, (None, None)), (0.7, ("a blue", None))])
def test_the_network_is_coupled_as_an_independent_one(
    strength: float, away: tuple[str | None, ...], tiny: Pipeline, tmp_path: Path
) -> None:
    """Where one region has a negative prompt, the other has the request's."""
    regions = tuple(one.replace(weight=strength, negative=own) for one, own in zip(HALVES, away, strict=True))
    given, (x, t) = said(tiny, regions, "a blue background"), latents()
    tiny.save(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    halves = {1: [tiny.encode_prompt([one]).tokens for one in ("a bear", "an apple")]}
    if any(away):
        halves[0] = [tiny.encode_prompt([one or ""]).tokens for one in away]
    processors = {
        name: Coupled(halves, strength) if ".attn2." in name else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    with torch.no_grad():
        theirs = unet(x, t, given.tokens).sample
        ours = bind_regions([tiny.unet], tiny.network)(given)(x, t)
        plain = tiny.network(given)(x, t)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-2
    assert torch.equal(ours[0], plain[0]) is not any(away)


def test_each_half_of_an_attention_gathers_from_its_own_prompt(tiny: Pipeline) -> None:
    attention, seen = cross_attentions(tiny.unet)[0][0], {}

    def keep(module: torch.nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        seen["x"], seen["answer"] = given[0], answer

    handle = attention.register_forward_hook(keep)
    with torch.no_grad():
        bind_regions([tiny.unet], tiny.network)(said(tiny, HALVES))(*latents())
        handle.remove()
        alone = [attention(seen["x"][1:], tiny.encode_prompt([text]).tokens) for text in ("a bear", "an apple")]
    ours, left, right = (tensor.unflatten(1, (4, 4)) for tensor in (seen["answer"][1:], *alone))
    assert torch.allclose(ours[:, :, :2], left[:, :, :2], atol=1e-6)
    assert torch.allclose(ours[:, :, 2:], right[:, :, 2:], atol=1e-6)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("tiny", {"guidance": 1.0}),
        ("tiny", {"cache_steps": 2, "negative": "an apple, a bear, a bear, a bear, a bear"}),
        ("tiny", {"negative": "blue", "perturbed_guidance": 2.0, "merge_tokens": 0.5}),
        ("tiny_xl", {"negative": "a blue", "hires": {"scale": 2.0, "steps": 2}}),
    ],
    ids=str,
)
def test_one_region_over_all_is_the_plain_prompt(
    family: str, more: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    system = request.getfixturevalue(family)
    plain = system.text_to_image("a bear", **ASKED, **more)[0]
    regions = tuple(region.replace(negative=more.get("negative")) for region in WHOLE)
    ours = system.text_to_image("an apple", regions=regions, **ASKED, **more | {"negative": "a bear"})[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(plain)).max() <= 1  # rounding alone
    assert ours.tobytes() != system.text_to_image("an apple", **ASKED, **more)[0].tobytes()


def test_a_prompt_that_changes_on_the_way_does_so_in_its_region(tiny: Pipeline) -> None:
    edited = "[a bear:an apple:2]"
    plain = tiny.text_to_image(edited, **ASKED)[0]
    ours = tiny.text_to_image("a blue bear", regions=[Region(prompt=edited, box="0,0,1,1")], **ASKED)[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(plain)).max() <= 1


def test_the_refiner_and_controlnets_follow_regions_too(tiny: Pipeline, tiny_v: Pipeline, model: str) -> None:
    refined = {"refiner": {"model": model, "switch": 0.5}, **ASKED}
    drawn = [
        list(stream(tiny, TextToImage(**fields, **refined), refiner=tiny_v))[-1]
        for fields in ({"prompt": "a bear"}, {"regions": WHOLE})
    ]
    assert torch.allclose(drawn[0].latents, drawn[1].latents, atol=1e-5)
    torch.manual_seed(0)
    net = ControlNet(ControlNetConfig(tiny.unet.config, hint_widths=(4,))).eval()
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    hint = net.embed_hint(torch.rand(1, 3, 4, 4))

    def bind(given: Conditioning) -> Any:
        return lambda x, t: net(x, t, given.tokens, hint.expand(len(x), -1, -1, -1))[-1]

    given, (x, t) = said(tiny, WHOLE, "an apple"), latents()
    with torch.no_grad():
        ours = bind_regions([tiny.unet, net], bind)(given)(x, t)
        plain = bind(replace(given, tokens=tiny.encode_prompt(["", "a bear"]).tokens))(x, t)
    assert (ours - plain).abs().max() < 1e-5
    assert (ours - bind(given)(x, t)).abs().max() > 1e-4


def test_pictures_of_an_ip_adapter_are_seen_beside_regions(tiny: Pipeline) -> None:
    attentions = [attention for attention, _ in cross_attentions(tiny.unet)]
    torch.manual_seed(0)
    seen = ImagePrompt(
        [(torch.randn(2, 3, one.to_k.out_features), torch.randn(2, 3, one.to_k.out_features)) for one in attentions],
        [0.8] * len(attentions),
    )
    given, (x, t) = said(tiny, WHOLE, "an apple"), latents()
    plain = replace(given, tokens=tiny.encode_prompt(["", "a bear"]).tokens, regions=())
    bind = bind_image_prompts(tiny, [seen], tiny.network)
    with torch.no_grad():
        ours = bind_regions([tiny.unet], bind)(given)(x, t)
        assert (ours - bind(plain)(x, t)).abs().max() < 1e-5
        assert (ours - tiny.network(plain)(x, t)).abs().max() > 1e-2
    assert not any("attend" in attention.__dict__ for attention in attentions)


def test_rows_drawn_together_are_those_drawn_alone(tiny: Pipeline) -> None:
    given, (x, t) = said(tiny, HALVES), latents(4)
    bind = bind_regions([tiny.unet], tiny.network)
    with torch.no_grad():
        together = bind(given.repeat(2))(x, t)
        for k in (0, 1):
            alone = bind(given)(x[k::2], t[:2])
            assert (together[k::2] - alone).abs().max() < 1e-6


def test_packed_networks_are_coupled_the_same(tiny: Pipeline) -> None:
    config = UNetConfig(
        block_out_channels=(256,),
        layers_per_block=1,
        transformer_depth=(1,),
        num_heads=(4,),
        cross_attention_dim=16,
        only_cross_attention=(True,),
    )
    torch.manual_seed(0)
    wide, (x, t), given = replace(tiny, unet=UNet(config).eval()), latents(), said(tiny, HALVES)
    with torch.no_grad():
        plain = bind_regions([wide.unet], wide.network)(given)(x, t)
        pack(wide.unet)
        packed = bind_regions([wide.unet], wide.network)(given)(x, t)
        assert (packed - plain).abs().max() < 1e-5
        assert (packed - wide.network(given)(x, t)).abs().max() > 1e-3


def test_pooled_prompts_count_by_their_share(tiny_xl: Pipeline) -> None:
    base, *others = (encode(tiny_xl, TextToImage(prompt=text)).positive[0] for text in ("a blue", "a bear", "an apple"))
    asked = [HALVES[0], Region(prompt="an apple", box="0.5,0,1,0.5", weight=0.5)]
    joined = with_regions(base, asked, others).at(0).pooled
    parts = [guide.at(0).pooled for guide in (base, *others)]
    assert torch.allclose(joined, 0.375 * parts[0] + 0.5 * parts[1] + 0.125 * parts[2], atol=1e-6)


def test_a_picture_with_regions_is_replayed(tiny: Pipeline, tmp_path: Path) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 9, 16))
    mask.save(tmp_path / "mask.png")
    asked = [{"prompt": "a bear", "mask": tmp_path / "mask.png", "weight": 0.9}, {"prompt": "an apple", "box": "right"}]
    picture = tiny.text_to_image("a blue background", regions=asked, **ASKED)[0]
    picture.save(file := tmp_path / "drawn.png", pnginfo=_texts(picture))
    again = from_metadata(file)
    assert isinstance(again, TextToImage)
    assert again.regions == tuple(Region.of(one) for one in asked)
    assert tiny.draw(again)[0].tobytes() == picture.tobytes()
    assert again.to_record()["regions"][0]["mask"].keys() == {"name", "sha256"}


def _texts(picture: Image.Image) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("reverie", picture.info["reverie"])
    return info


def test_templates_are_drawn_in_regions(tiny: Pipeline) -> None:
    region = Region(prompt="{a bear|an apple}", negative="{red|blue}", box="left")
    request = TextToImage(regions=[region], seed=1, count=8)
    drawn = [one.regions[0] for one in draw_prompts(request, Wildcards(None))]
    assert {one.prompt for one in drawn} == {"a bear", "an apple"}
    assert {one.negative for one in drawn} == {"red", "blue"}
    assert draw_prompts(request.replace(regions=HALVES), Wildcards(None)) == (request.replace(regions=HALVES),)


def test_places_are_written_in_several_ways(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(mask := tmp_path / "mask.png")
    odd = mask.rename(tmp_path / "a=b.png")
    Image.new("L", (8, 8), 255).save(mask)
    texts = ("left=a bear, sitting", "0,0.25,0.5,1:0.8=x=y", "row2/3=", f"{mask}:2=an apple", f"{odd}=x @negative y, z")
    made = [Region.of(parse_region(text)) for text in texts]
    assert [one.prompt for one in made] == ["a bear, sitting", "x=y", "", "an apple", "x"]
    assert [one.box for one in made] == [(0, 0, 0.5, 1), (0, 0.25, 0.5, 1), (0, 1 / 3, 1, 2 / 3), None, None]
    assert [one.weight for one in made] == [1, 0.8, 1, 2, 1]
    assert [one.negative for one in made] == [None, None, None, None, "y, z"]
    long = f"{'a bear, ' * 40}x=y"  # too much for the name of a mask
    assert Region.of(parse_region(f"left={long}")).prompt == long
    for text, message in {
        "a bear": "--region 'a bear' is not possible; write PLACE=PROMPT",
        "lefft=a bear": "names no part of a picture; write left, right, top, bottom, column1/3",
        "column4/3=x": "names no part of a picture",
        "0.5,0,0.5,1=x": "is empty; give left below right",
        "0,0,2,1=x": "less than or equal to 1",
    }.items():
        with pytest.raises(ReverieError, match=message):
            Region.of(parse_region(text))


def test_what_regions_do_not_go_with_is_said(tiny: Pipeline) -> None:
    picture = Image.new("RGB", (32, 32))
    with pytest.raises(ReverieError, match="a box or a mask; give one of them"):
        Region(prompt="a bear")
    for box in ((0, 0, 1), (0, 1)):
        with pytest.raises(ReverieError, match=r"is not possible; it should have 4 items$"):
            Region(prompt="a bear", box=box)
    with pytest.raises(ReverieError, match="the mask is dark everywhere, so nothing acts; make the part"):
        tiny.text_to_image("snow", regions=[{"prompt": "a bear", "mask": Image.new("L", (32, 32))}])
    with pytest.raises(ReverieError, match="of which only_masked draws one; leave out one of them"):
        Inpaint(init=picture, mask=Image.new("L", (32, 32), 255), only_masked=True, regions=HALVES)
    for asked in ({"prompt": "a bear AND an apple"}, {"prompt": "a bear :1.2"}):
        with pytest.raises(ReverieError, match="regions go with neither AND nor a weight of a whole prompt"):
            tiny.text_to_image(regions=HALVES, **asked)
    with pytest.raises(ReverieError, match="prompts of regions is not recorded; leave out the regions"):
        explain(tiny, TextToImage(prompt="a bear", regions=HALVES))
