"""CLIP files in OpenAI's, open_clip's and transformers' layouts: the same embeddings as the networks they came from."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.checkpoints import clip_files
from reverie.checkpoints.clip_files import PUBLISHED, identify_clip, load_clip
from reverie.checkpoints.description import describe
from reverie.checkpoints.load import CLIPComponents
from reverie.checkpoints.pickles import open_pickle
from reverie.checkpoints.save import save_clip
from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from reverie.models.clip_presets import CLIPS
from reverie.tokenizer import Tokenizer

LAYERS, SIZE, PATCH, SPACE = 2, 32, 8, 24


class Block(nn.Module):
    """OpenAI's residual attention block (openai/CLIP, model.py), restated on torch's own attention."""

    def __init__(self, width: int, causal: bool, act: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", act)
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[0]
        mask = torch.full((length, length), float("-inf")).triu_(1) if self.causal else torch.zeros(length, length)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Transformer(nn.Module):
    def __init__(self, width: int, causal: bool, act: type[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, causal, act()) for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class Visual(nn.Module):
    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        width = 128
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, False, act)
        self.proj = nn.Parameter(torch.randn(width, SPACE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding + torch.zeros_like(x[:, :1]), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """Both towers under OpenAI's names, which open_clip kept."""

    def __init__(self, vocab: int, length: int, act: type[nn.Module] = QuickGELU) -> None:
        super().__init__()
        width = 64
        self.visual = Visual(act)
        self.transformer = Transformer(width, True, act)
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, SPACE))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(pixels), self.encode_text(tokens)


@pytest.fixture
def place(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of checkpoints, with the tiny vocabulary to be found."""
    tokenizer.save(tmp_path / "vocabulary")
    monkeypatch.setenv("REVERIE_TOKENIZER", str(tmp_path / "vocabulary"))
    return tmp_path


@torch.no_grad()
def oracle(tokenizer: Tokenizer, act: type[nn.Module] = QuickGELU) -> OpenAIClip:
    torch.manual_seed(0)
    model = OpenAIClip(len(tokenizer), tokenizer.length, act).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@torch.no_grad()
def check(clip: CLIP, model: OpenAIClip, tokenizer: Tokenizer, tolerance: float = 1e-5) -> None:
    """Compare embeddings, the error relative to their size."""
    pixels, tokens = torch.randn(3, 3, SIZE, SIZE), tokenizer(["a bear", "an apple next to a bear", ""])
    for ours, theirs in zip(clip(pixels, tokens), model(pixels, tokens), strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance
    assert clip.logit_scale.item() == pytest.approx(model.logit_scale.item())


def scripted(model: OpenAIClip, tokenizer: Tokenizer, file: Path) -> None:
    """Write a TorchScript archive as OpenAI publishes them: traced, with its sizes as tensors."""
    for name, value in (
        ("input_resolution", SIZE),
        ("context_length", tokenizer.length),
        ("vocab_size", len(tokenizer)),
    ):
        model.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (torch.randn(2, 3, SIZE, SIZE), tokenizer(["a bear", "an apple"])))
        torch.jit.save(traced, str(file))


def test_openais_archive_is_read_as_data(place: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = oracle(tokenizer), place / "ViT-tiny.pt"
    scripted(model, tokenizer, file)
    assert any(entry.compress_type for entry in zipfile.ZipFile(file).infolist()), "its code should be compressed"
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch, "load", None)
    assert set(open_pickle(file).names()) == set(model.state_dict())
    found = load_clip(file)
    assert found.name == "ViT-tiny"
    assert found.clip.config.text.hidden_act == found.clip.config.vision.hidden_act == "quick_gelu"
    assert found.clip.config.vision.image_size == SIZE
    assert found.tokenizer.length == tokenizer.length
    check(found.clip, model, tokenizer)


def test_a_torchscript_archive_with_half_precision_is_openais(place: Path, tokenizer: Tokenizer) -> None:
    """OpenAI's weights: matrices in float16, norms and embeddings in float32; a copy without the size tensors."""
    model = oracle(tokenizer)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.half()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, place / "copy.safetensors")
    found = load_clip(place / "copy.safetensors")
    assert found.clip.config.text.hidden_act == "quick_gelu"
    assert {parameter.dtype for parameter in found.clip.parameters()} == {torch.float32}
    check(found.clip, model.float(), tokenizer)


@pytest.mark.parametrize("shape", ["plain", "module", "text", "trainer"])
def test_open_clips_files(place: Path, tokenizer: Tokenizer, shape: str) -> None:
    """Plain, as data parallel training leaves them, as CustomTextCLIP names texts, and a trainer's checkpoint."""
    model = oracle(tokenizer, nn.GELU)
    state = dict(model.state_dict())
    if shape == "text":
        state = {n if n.startswith(("visual", "logit")) else f"text.{n}": t for n, t in state.items()}
    if shape in ("module", "trainer"):
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}} if shape == "trainer" else state
    torch.save(content, place / "epoch_3.pt")
    found = load_clip(place / "epoch_3.pt")
    assert found.clip.config.text.hidden_act == "gelu"
    check(found.clip, model, tokenizer)


def test_open_clips_folder_says_its_activation(place: Path, tokenizer: Tokenizer) -> None:
    model = oracle(tokenizer)
    save_file(dict(model.state_dict()), place / "open_clip_model.safetensors")
    settings = {"model_cfg": {"embed_dim": SPACE, "quick_gelu": True}, "preprocess_cfg": {"resize_mode": "squash"}}
    (place / "open_clip_config.json").write_text(json.dumps(settings))
    found = load_clip(place)
    assert found.folder == place
    check(found.clip, model, tokenizer)


def test_the_activation_can_be_told(place: Path, tokenizer: Tokenizer) -> None:
    quick, exact = oracle(tokenizer), oracle(tokenizer, nn.GELU)
    save_file(dict(quick.state_dict()), place / "vit.safetensors")
    save_file(dict(quick.state_dict()), place / "vit-quickgelu.safetensors")
    check(load_clip(place / "vit.safetensors", activation="quick_gelu").clip, quick, tokenizer)
    check(load_clip(place / "vit-quickgelu.safetensors").clip, quick, tokenizer)
    check(load_clip(place / "vit.safetensors").clip, exact, tokenizer)
    with pytest.raises(ReverieError, match="unknown activation 'relu'; choose from gelu, quick_gelu"):
        load_clip(place / "vit.safetensors", activation="relu")


def tiny(tokenizer: Tokenizer) -> CLIP:
    layers = {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=80,
        num_attention_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.length,
        eos_token_id=tokenizer.eos_id,
        projection_dim=SPACE,
        **layers,
    )
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=100, num_attention_heads=2, image_size=SIZE, patch_size=PATCH, **layers
    )
    torch.manual_seed(1)
    return CLIP(CLIPConfig(text=text, vision=vision, projection_dim=SPACE)).eval()


@torch.no_grad()
def test_transformers_folder_and_its_file_alone(place: Path, tokenizer: Tokenizer) -> None:
    """Sizes come from config.json where there is one, and from shapes where there is none."""
    clip = tiny(tokenizer)
    save_clip(CLIPComponents(clip, tokenizer), place / "folder")
    (place / "alone").mkdir()
    (place / "alone" / "some.safetensors").write_bytes((place / "folder" / "model.safetensors").read_bytes())
    pixels, tokens = torch.randn(2, 3, SIZE, SIZE), tokenizer(["a bear", "an apple"])
    for path in (place / "folder", place / "folder" / "model.safetensors", place / "alone" / "some.safetensors"):
        found = load_clip(path)
        assert found.clip.config.vision == clip.config.vision
        assert found.clip.config.text == clip.config.text
        for ours, theirs in zip(found.clip(pixels, tokens), clip(pixels, tokens), strict=True):
            assert torch.equal(ours, theirs)
    changed = load_clip(place / "folder", activation="gelu").clip
    assert changed.config.text.hidden_act == "gelu"
    assert not torch.equal(changed(pixels, tokens)[0], clip(pixels, tokens)[0])


# As open_clip's docs/model_profile.csv counts them; ViT-B/32's 151,277,313 are in OpenAI's notebook.
MILLIONS = {
    "ViT-B/32": 151.28,
    "ViT-B/16": 149.62,
    "ViT-L/14": 427.62,
    "ViT-L/14@336": 427.94,
    "ViT-H/14": 986.11,
    "ViT-bigG/14": 2539.57,
}


@pytest.mark.parametrize("name", CLIPS)
def test_published_sizes_from_shapes_alone(name: str) -> None:
    """Parameters are the published ones, and sizes and heads are read back from the shapes of a file."""

    class Shapes:
        """A file of open_clip's layout that has shapes and no weights."""

        def __init__(self, state: dict[str, Tensor]) -> None:
            self.state = state

        def names(self) -> list[str]:
            return list(self.state)

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.state[name].shape)

        def dtype(self, name: str) -> torch.dtype:
            return self.state[name].dtype

        def tensor(self, name: str) -> Tensor:
            return self.state[name]

    config = CLIPS[name]
    with torch.device("meta"):
        clip = CLIP(config)
    assert sum(p.numel() for p in clip.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.01)
    assert name in PUBLISHED
    layout = clip_files.CLIPLayout("open_clip", clip_files._open_clip)
    state = clip.state_dict()
    source = Shapes(clip_files.compvis.to_single_file(state, layout.ours(config).places(state)))
    assert identify_clip(source, "file") == layout
    assert clip_files.config_of(source, layout, "file", config.text.hidden_act) == config


def test_what_is_no_such_clip_is_told(place: Path, tokenizer: Tokenizer, make_system) -> None:
    cases = {
        "rn50": ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "residual network"),
        "siglip": ({"logit_bias": torch.zeros(1), "vision_model.head.probe": torch.zeros(1)}, "SigLIP"),
        "text": ({"text_model.final_layer_norm.weight": torch.zeros(1)}, "holds no CLIP with both towers"),
    }
    for name, (state, fault) in cases.items():
        save_file(state, place / f"{name}.safetensors")
        with pytest.raises(ReverieError, match=fault):
            load_clip(place / f"{name}.safetensors")
    state = dict(oracle(tokenizer).state_dict())
    del state["visual.proj"]
    save_file(state, place / "less.safetensors")
    with pytest.raises(ReverieError, match=r"'visual\.proj' is missing"):
        load_clip(place / "less.safetensors")
    state = dict(oracle(tokenizer).state_dict()) | {"visual.extra": torch.zeros(1)}
    save_file(state, place / "more.safetensors")
    with pytest.raises(ReverieError, match=r"'visual\.extra' is not known"):
        load_clip(place / "more.safetensors")
    make_system().save(place / "drawing")
    with pytest.raises(ReverieError, match="holds a model that draws"):
        load_clip(place / "drawing")
    with pytest.raises(ReverieError, match="no CLIP at 'nowhere'"):
        load_clip("nowhere")


def test_inspect_knows_a_clip(place: Path, tokenizer: Tokenizer) -> None:
    model = oracle(tokenizer)
    scripted(model, tokenizer, place / "vit.pt")
    save_clip(CLIPComponents(tiny(tokenizer), tokenizer), place / "folder")
    for file in (place / "vit.pt", place / "folder" / "model.safetensors"):
        assert (describe(file).kind, describe(file).title) == ("clip", "a CLIP")


def test_names_are_looked_up_on_the_hub(place: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old repositories hold a pickle and no safetensors: the second is asked for, then the first."""
    save_clip(CLIPComponents(tiny(tokenizer), tokenizer), place / "hub")
    weights = (place / "hub" / "model.safetensors").read_bytes()
    (place / "hub" / "model.safetensors").unlink()
    asked: list[tuple[str, str]] = []

    def fetch(repo: str, files: list[str], *, revision: str | None = None) -> Path:
        asked.append((repo, list(files)[-1]))
        if "model.safetensors" in files:
            raise ReverieError("holds no such file")
        if "pytorch_model.bin" in files:
            (place / "hub" / "model.safetensors").write_bytes(weights)
        return place / "hub"

    monkeypatch.setattr(clip_files.hub, "fetch", fetch)
    found = load_clip("ViT-B/32")
    assert found.name == "ViT-B/32"
    assert {repo for repo, _ in asked} == {"openai/clip-vit-base-patch32"}
    assert [file for _, file in asked][1:] == ["model.safetensors", "pytorch_model.bin"]


def test_a_torchscript_archive_cannot_run_or_swell(place: Path, tokenizer: Tokenizer) -> None:
    """What is no module of TorchScript is refused as before, and modules that hold each other end."""
    model, file = oracle(tokenizer), place / "vit.pt"
    scripted(model, tokenizer, file)
    evil = place / "evil.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(evil, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(
                entry.filename, b"cos\nsystem\n(S'true'\ntR." if entry.filename.endswith("/data.pkl") else data
            )
    with pytest.raises(ReverieError, match=r"wants to run 'os\.system'"):
        open_source(evil)
    cycle = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with zipfile.ZipFile(evil, "w") as new:
        new.writestr("archive/data.pkl", cycle)
    with pytest.raises(ReverieError, match="holds no tensors"):
        open_source(evil)
