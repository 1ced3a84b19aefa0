"""Do folders of pictures, as people keep them, give what they say: repeats, shapes, variants, masks and captions?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from reverie.errors import RequestWarning, ReverieError
from reverie.train.examples import Augmentation, Wording
from reverie.train.finetune import Finetuning, build
from reverie.train.folders import bucket_sizes, nearest, notes, open_parts, open_pictures
from reverie.train.recipe import read

RECIPE = """
objective = "finetune"
[run]
steps = 1
lr = 1e-3
device = "cpu"
[model]
base = "{base}"
"""


def save(file: Path, width: int = 48, height: int = 40, caption: str = "") -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(file.name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    if caption:
        file.with_suffix(".txt").write_text(caption)
    return pixels


@pytest.fixture
def objective(model: str, tmp_path: Path) -> Callable[[str], Finetuning]:
    def make(tables: str) -> Finetuning:
        (path := tmp_path / "recipe.toml").write_text(RECIPE.format(base=model) + tables.replace("PATH", str(tmp_path)))
        return build(read(path), 3, tmp_path / "out")

    return make


def test_kohyas_folders_repeat_and_name_their_pictures(tmp_path: Path, objective: Callable[[str], Finetuning]) -> None:
    save(tmp_path / "train/3_sks dog/a.png")
    save(tmp_path / "train/3_sks dog/b.png", caption="a dog that sleeps")
    save(tmp_path / "train/1_plain/c.png")
    parts = {part.name: part for part in open_parts(tmp_path / "train", "")}
    assert {name: (part.repeats, len(part.found)) for name, part in parts.items()} == {
        "3_sks dog": (3, 2),
        "1_plain": (1, 1),
    }
    serve = objective('[data]\npictures = "PATH/train"\ndropout = 0.0\nbatch = 1\n').batches.items.make
    seen = Counter(serve(index)[1]["caption"] for index in range(21))  # three passes
    assert seen == {"sks dog": 9, "a dog that sleeps": 9, "plain": 3}
    save(tmp_path / "train/d.png", caption="outside of them")
    assert [part.name for part in open_parts(tmp_path / "train", "")] == [""]


def test_bucket_sizes_are_kohyas() -> None:
    """Worked out by hand after make_bucket_resolutions((512, 512), 256, 1024, 64) of kohya-ss/sd-scripts."""
    tall = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    sizes = bucket_sizes(512, 64)
    assert sizes == sorted([*tall, (512, 512), *((height, width) for width, height in tall)])
    assert nearest(sizes, (3000, 2000)) == (640, 384)
    assert nearest(sizes, (10, 10)) == (512, 512)


def test_batches_hold_one_shape_and_a_pass_all_pictures(tmp_path: Path, objective: Callable[[str], Finetuning]) -> None:
    for number, (width, height) in enumerate([(64, 32), (60, 31), (32, 64), (40, 40), (41, 40), (39, 40)]):
        save(tmp_path / f"train/{number}.png", width, height, caption=f"picture {number}")
    ours = objective('[data]\npictures = "PATH/train"\nbuckets = 8\ndropout = 0.0\nbatch = 2\n')
    batches = [ours.batches(step) for step in range(8)]  # two passes of 1 + 1 + 2 batches
    shapes = Counter(tuple(latents.shape[2:]) for latents, _, _ in batches)
    assert len(shapes) == 3
    assert shapes[4, 4] == 4
    assert {caption for _, described, _ in batches[:4] for caption in described["caption"]} == {
        f"picture {number}" for number in range(6)
    }
    for _, loss, _ in ours.losses(0):
        assert torch.isfinite(loss)


def test_variants_are_drawn_once_and_told_to_sdxl(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 64, 32, caption="a")
    augmentation = Augmentation(variants=40, flip=0.5, random_crop=True)
    (pictures,) = open_pictures(str(tmp_path), "", 32, augmentation=augmentation).values()
    assert len(pictures) == 40
    whole, flipped = Image.open(tmp_path / "a.png"), ImageOps.mirror(Image.open(tmp_path / "a.png"))
    lefts, mirrored = set(), 0
    for index in range(40):
        original, (left, top), target = pictures.sizes(index)
        assert (original, top, target) == ((64, 32), 0, (32, 32))
        crops = [np.array(one.crop((left, 0, left + 32, 32)), int) for one in (whole, flipped)]
        errors = [abs(pictures.picture(index) - crop).mean() for crop in crops]
        assert min(errors) < 45 < max(errors)  # crops lie between pixels
        lefts.add(left)
        mirrored += errors[1] < errors[0]
    assert len(lefts) > 10
    assert 10 < mirrored < 30
    (jittered,) = open_pictures(str(tmp_path), "", 32, augmentation=Augmentation(variants=2, colour=0.3)).values()
    assert not np.array_equal(jittered.picture(0), jittered.picture(1))
    assert np.array_equal(jittered.picture(0), jittered.picture(0))


def test_tags_are_shuffled_kept_and_left_out() -> None:
    wording = Wording(shuffle=True, keep=1, tag_dropout=0.3)
    told = [wording.tell("dog, red, big, old", 0, turn) for turn in range(200)]
    assert all(caption.startswith("dog") for caption in told)
    tags = Counter(tag for caption in told for tag in caption.split(", "))
    assert set(tags) == {"dog", "red", "big", "old"}
    assert all(110 < tags[tag] < 170 for tag in ("red", "big", "old"))
    assert told[3] == wording.tell("dog, red, big, old", 0, 3)
    few = Wording(shuffle=True, versions=2)
    assert len({few.tell("a, b, c, d, e, f", 0, turn) for turn in range(50)}) == 2
    assert Wording().tell("a,b", 0, 1) == "a,b"


def test_what_a_mask_leaves_out_has_no_say(tmp_path: Path, objective: Callable[[str], Finetuning]) -> None:
    save(tmp_path / "train/a.png", 32, 32, caption="a bear")
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    data = '[data]\npictures = "PATH/train"\nbatch = 1\ndropout = 0.0\n'
    ours, plain = objective(data + 'masks = "PATH/masks"\n'), objective(data)
    latents, _, share = ours.batches(0)
    assert torch.equal(latents, plain.batches(0)[0])
    assert torch.equal(share, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4))
    ((_, loss, metrics),), ((_, whole, _),) = ours.losses(0), plain.losses(0)
    assert metrics["error"] == pytest.approx(whole.item())
    assert 0 < loss.item() < whole.item()


def test_what_has_no_partner_is_listed_and_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png", caption="a")
    for name in ("b", "c", "d", "e"):
        save(tmp_path / f"{name}.png")
    (tmp_path / "x.txt").write_text("nothing")
    assert list(notes(str(tmp_path), "")) == [
        "4 pictures without a caption are left out: b, c, d, ...; write NAME.txt, or give caption",
        "1 captions without a picture: x",
    ]
    assert len(list(notes(str(tmp_path), "a photo"))) == 1


def test_wrong_settings_get_one_line(tmp_path: Path, objective: Callable[[str], Finetuning]) -> None:
    save(tmp_path / "train/a.png", caption="a")
    with pytest.raises(ReverieError, match=r"buckets = 10 in \[data\] of the recipe; give a multiple of 8, such as 64"):
        objective('[data]\npictures = "PATH/train"\nbuckets = 10\n')
    with pytest.raises(ReverieError, match=r"no masks in .*; give a folder of pictures named as those"):
        objective('[data]\npictures = "PATH/train"\nmasks = "PATH/none"\n')
    with pytest.raises(ReverieError, match=r"get new captions in each pass; leave cached in \[text\] out"):
        objective('[data]\npictures = "PATH/train"\n[captions]\nshuffle = true\n[text]\ncached = true\n')


HELD_OUT = '[data]\npictures = "PATH/photos"\ncaption = "a dog"\nbatch = 2\nbuckets = 8\nheld_out = '


def test_a_share_of_the_pictures_is_measured_and_not_learned(
    tmp_path: Path, objective: Callable[[str], Finetuning]
) -> None:
    for number in range(10):
        save(tmp_path / f"photos/y{'x' * number}.png", *((48, 40), (64, 32))[number % 2])
    varied = "[augment]\nvariants = 3\nflip = 0.5\n"
    trained = objective(f"{HELD_OUT}0.2\n{varied}")
    streams = [serve.examples for serve in trained.batches.items.make.streams]
    apart = [stream.examples for stream in trained.held_out]
    numbers = [[n for examples in rows for n in examples.members] for rows in (streams, apart)]
    assert sorted(numbers[0] + numbers[1]) == list(range(10))
    assert len(numbers[1]) == 2
    assert sum(map(len, apart)) == 2  # no variants
    first = trained.measures()
    list(trained.losses(7))
    assert trained.measures() == first
    again = objective(f"{HELD_OUT}0.2\n{varied}")
    assert [stream.examples.members for stream in again.held_out] == [examples.members for examples in apart]
    with pytest.raises(ReverieError, match=r"held_out = 0.99 in \[data\] leaves nothing of 10 pictures"):
        objective(f"{HELD_OUT}0.99\n")
    with pytest.raises(ReverieError, match=r"photos' in \[data\] holds pictures that are learned from"):
        objective(f'{HELD_OUT}"PATH/photos"\n')


def test_the_validation_loss_is_the_mean_over_a_folder_at_fixed_noise(
    tmp_path: Path, objective: Callable[[str], Finetuning]
) -> None:
    for folder, count in (("photos", 4), ("others", 3)):
        for number in range(count):
            save(tmp_path / f"{folder}/y{'x' * number}.png", caption=f"{folder} {number}")
    trained = objective(f'{HELD_OUT}"PATH/others"\n')
    (stream,) = trained.held_out
    told = {trained.batches.items.make(index)[1]["caption"] for index in range(40)}
    assert told == {"", *(f"photos {number}" for number in range(4))}
    assert {stream(index)[1]["caption"] for index in range(40)} == {f"others {number}" for number in range(3)}
    losses = []
    for step in range(16):  # three pictures in batches of two, each seen ten times or more
        generator, items = (
            torch.Generator().manual_seed((3 * 1_000_003 + step) * 8),
            [stream(2 * step + k) for k in (0, 1)],
        )
        t, x0 = torch.randint(1000, (2,), generator=generator), torch.stack([latents for latents, _, _ in items])
        eps, components = torch.randn(x0.shape, generator=generator), trained.components
        tokens = components.tokenizers[0]([told["caption"] for _, told, _ in items])
        with torch.no_grad():
            noisy = trained.schedule.add_noise(x0, eps, t)
            predicted = components.unet(noisy, t, components.text_encoders[0](tokens).last)
        target = trained.prediction.target(trained.schedule, x0, eps, t)
        losses.append((predicted - target).square().mean().item())
    assert trained.measures()["validation"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("buckets", [0, 8])
def test_damaged_pictures_are_left_out_named_and_counted(
    tmp_path: Path, objective: Callable[[str], Finetuning], buckets: int
) -> None:
    for name in "abcd":
        save(tmp_path / f"photos/{name}.png", caption=name)
    content = (tmp_path / "photos/b.png").read_bytes()
    (tmp_path / "photos/b.png").write_bytes(content[: len(content) // 2])  # its header is whole
    (tmp_path / "photos/c.png").write_bytes(b"no picture")
    said = r"^2 (of 4 )?pictures cannot be read.*b\.png.*c\.png"
    varied = "[augment]\nvariants = 2\n"
    with pytest.warns(RequestWarning, match=said):
        trained = objective(f'[data]\npictures = "PATH/photos"\ndropout = 0.0\nbuckets = {buckets}\n{varied}')
    assert {trained.batches.items.make(index)[1]["caption"] for index in range(20)} == {"a", "d"}
    assert trained.batches.keys(0) == trained.batches.keys(0)
    assert {Path(key).name for key in trained.batches.keys(0)} == {"a.png", "d.png"}
    with pytest.warns(RequestWarning, match=said):  # also where the latents are there
        objective(f'[data]\npictures = "PATH/photos"\ndropout = 0.0\nbuckets = {buckets}\n{varied}')
    for name in "ad":
        (tmp_path / f"photos/{name}.png").write_bytes(b"no picture")
    with pytest.raises(ReverieError, match="pictures cannot be read"):
        objective(f'[data]\npictures = "PATH/photos"\nbuckets = {buckets}\n{varied}')
