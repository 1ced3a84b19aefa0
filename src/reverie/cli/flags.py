"""The flags of `reverie image`, `animate` and `music`, by groups; what is not given is None.

Written by scripts/write_options.py from the fields of the requests; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from reverie.cli.options import Flag, Several, Whole


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SampledFlags:
    """How every request is sampled."""

    negative: str | None = None
    """Negative prompt: what to keep away from."""
    seed: Whole | None = None
    """Seed of the noise, number k of several from seed + k; random if not given or -1."""
    steps: Whole | None = None
    """Denoising steps; 20 if not given."""
    guidance: float | None = None
    """Scale of classifier-free guidance: how strictly the prompt is followed; 1 switches it off; the model's own if not given."""
    sampler: str | None = None
    """Sampler: dpmpp_2m, euler, heun, ..., or as other programs call it; an unknown name lists them all; dpmpp_2m if not given."""
    schedule: str | None = None
    """Spacing of the noise levels: karras, exponential, ...; an unknown name lists them all; karras if not given."""
    timesteps: str | None = None
    """Timesteps that are visited, such as 999,749,499,249, in place of steps and schedule."""
    sigmas: str | None = None
    """Noise levels from the first to where the last step ends, such as 14.6,7,2,0.5,0, in place of steps and schedule."""
    eta: float | None = None
    """0 to 1, share of the noise that a step takes out and draws afresh (DDIM's eta, TCD's gamma); the sampler's own if not given."""
    discard_penultimate: Flag = False
    """Leave out the noise level before the last, of one step more, as A1111 does for DPM2 and 3M SDE."""
    guidance_rescale: float | None = None
    """0 to 1, against overexposure at high guidance (Lin et al. 2305.08891, eq. 15-16); 0 if not given."""
    guidance_interval: str | None = None
    """START,END: fractions of the way between which guidance acts, such as 0.2,0.8; the whole if not given."""
    perturbed_guidance: float | None = None
    """Scale of perturbed-attention guidance (Ahn et al. 2403.17377), such as 3, beside guidance or with guidance 1; 0 is none; 0 if not given."""
    cfg_pp: Flag = False
    """CFG++ (Chung et al. 2406.08070), with a guidance of 0 to 1 such as 0.6; for euler and ddim."""
    freeu: str | None = None
    """FreeU (Si et al. 2309.11497), its b1,b2,s1,s2: 1.5,1.6,0.9,0.2 for SD 1, 1.3,1.4,0.9,0.2 for XL."""
    cache_steps: Whole | None = None
    """Steps for which the U-Net's inner levels are computed once (DeepCache): quicker, and a little another picture; 1 if not given."""
    merge_tokens: float | None = None
    """0 to 0.75, share of the tokens that self-attention merges: quicker at large sizes, and a little another picture; 0 if not given."""
    threshold: float | None = None
    """Percentile of dynamic thresholding, such as 0.995; none if not given."""


@Parameter(name="*", group="Adapt the model")
@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """What is added to the model and to its prompt."""

    lora: Several = ()
    """LoRA: FILE or name, FILE:weight or FILE:text weight:U-Net weight; may be given several times."""
    embedding: Several = ()
    """Textual inversion, named in the prompt by its file's name, or a folder of them; may be given several times."""
    lora_dir: Several = ()
    """Folder where LoRAs and embeddings are looked for by name, before REVERIE_LORA_DIR; may be given several times."""
    clip_skip: Whole | None = None
    """2 reads the last but one layer of the text encoder, and so on; 1 if not given."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PictureFlags(SampledFlags):
    """How pictures are drawn."""

    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 8, or what the model asks; the model's own if not given."""
    count: Whole | None = None
    """How many pictures; 1 if not given."""
    region: Several = ()
    """Part of the picture and its own prompt, PLACE=PROMPT or PLACE:WEIGHT=PROMPT, which may end with @negative PROMPT; PLACE is left, right, top, bottom, column1/3, row2/3, LEFT,TOP,RIGHT,BOTTOM as fractions, or a mask; may be given several times."""


@Parameter(name="*", group="Start from a picture")
@dataclass(frozen=True, kw_only=True)
class InitFlags:
    """The picture that a drawing starts from."""

    init: Path | None = None
    """Picture to draw anew, or a folder of them; transparent parts are painted, the rest stays."""
    strength: float | None = None
    """0 to 1, how far to go from the picture; 1 forgets it; 0.75 if not given."""
    image_guidance: float | None = None
    """How far a model that edits pictures (InstructPix2Pix) keeps to the picture; 1.5 if not given."""
    mask: Path | None = None
    """White is painted, or what is opaque where some of the mask is transparent; if not given, what is transparent in the picture."""
    mask_blur: Whole | None = None
    """Pixels by which the mask's edge is softened; without a mask alpha itself is the edge; 4 if not given."""
    only_masked: Flag = False
    """Draw the part around the mask alone, at full size."""
    padding: Whole | None = None
    """Pixels around the mask that only_masked draws as well; 32 if not given."""
    fill: str | None = None
    """What to start from within the mask; original if not given."""
    outpaint: str | None = None
    """Continue the picture beyond its edges by so many pixels: 64, or left=64,bottom=32."""


@Parameter(name="*", group="Adapt the model")
@dataclass(frozen=True, kw_only=True)
class PictureAdapterFlags(AdapterFlags):
    """What is added to the model of pictures."""

    control: Several = ()
    """ControlNet or T2I-Adapter and its picture, model=FILE,image=FILE[,weight=1,start=0,end=1,preprocessor=canny,kind=depth]; may be given several times."""
    ip_adapter: Several = ()
    """IP-Adapter and the pictures that it shows beside the prompt, model=FILE,image=FILE[,image=FILE,encoder=FOLDER,weight=1,layers=3+6:0.5,start=0,end=1,mask=FILE]; may be given several times."""


@Parameter(name="*", group="Go further")
@dataclass(frozen=True, kw_only=True)
class FurtherFlags:
    """Variations, a second pass, a refiner, seamless edges and SDXL's sizes."""

    vary: Several = ()
    """Picture to draw variations of, FILE or FILE:weight, for models that see one (the bundled one, unCLIP, image variations); may be given several times, and blends them."""
    noise_level: Whole | None = None
    """How far unCLIP is to go from the picture that it varies, 0 to 999, 0 if not given; how far the x4 upscaler is from the one that it enlarges, 0 to 350, 20 if not given."""
    depth: Path | None = None
    """Depth map to draw by, bright where it is near, for SD 2 depth; says the size."""
    subseed: Whole | None = None
    """Seed of a variation: the noise goes towards this seed's; 0 if not given."""
    subseed_strength: float | None = None
    """0 to 1, how far it goes; 0 if not given."""
    seed_size: str | None = None
    """WIDTHxHEIGHT that the seed's noise is drawn at, to keep a composition at another size."""
    hires: str | None = None
    """Enlarge and draw a second time: by a factor such as 2, or to WIDTHxHEIGHT; 2 if not given."""
    hires_upscaler: str | None = None
    """What enlarges the latents, or the picture: latent, latent-antialiased, latent-bicubic, latent-bicubic-antialiased, latent-nearest, latent-nearest-exact, lanczos, or the file of a learned upscaler (ESRGAN, Real-ESRGAN, SwinIR, DAT); latent if not given."""
    hires_steps: Whole | None = None
    """Steps of the second pass; those of the first if not given."""
    hires_strength: float | None = None
    """0 to 1, how far the second pass goes from the first; 0.7 if not given."""
    refiner: str | None = None
    """Model that takes the last steps: folder, file or name on the hub."""
    refiner_switch: float | None = None
    """Fraction of the way after which it does; 0.8 if not given."""
    rng: str | None = None
    """Generator of the noise: cpu (torch's), gpu (an NVIDIA GPU's), or cpu_then_gpu, as in ComfyUI; cpu if not given."""
    zero_negative: Flag = False
    """Put zeros for an empty negative prompt, not its encoding; the model's own way if not given."""
    tile: str | None = None
    """x, y or xy: directions in which copies of the picture fit each other."""
    tile_size: Whole | None = None
    """pixels, such as the model's own size: what is larger is denoised in tiles of that side, which lie half over one another and are averaged (MultiDiffusion, Bar-Tal et al. 2302.08113), in the memory of one."""
    original_size: str | None = None
    """SDXL: WIDTHxHEIGHT of the picture that this one is said to be cut from; its own if not given."""
    crop: str | None = None
    """SDXL: LEFTxTOP that it is said to be cut at; 0x0 if not given."""
    target_size: str | None = None
    """SDXL: WIDTHxHEIGHT that it is said to have; its own if not given."""
    negative_original_size: str | None = None
    """SDXL: --original-size of the negative prompt; as the prompt's if not given."""
    negative_crop: str | None = None
    """SDXL: --crop of the negative prompt; as the prompt's if not given."""
    negative_target_size: str | None = None
    """SDXL: --target-size of the negative prompt; as the prompt's if not given."""


@Parameter(name="*", group="Choose the path")
@dataclass(frozen=True, kw_only=True)
class PathFlags:
    """What a film goes through, how and how fast."""

    keyframe: Several = ()
    """What to draw and when, such as "2s: an apple @seed 3"; may be given several times, for prompts."""
    storyboard: Path | None = None
    """TOML or JSON file of keyframes and fields of the film; flags go before it."""
    frames: Whole | None = None
    """Frames from the first to the last keyframe."""
    seconds: float | None = None
    """Seconds from the first to the last keyframe; 2 between two, if neither is given."""
    fps: float | None = None
    """Frames a second; those of --init-video, if there is one; 20 if not given."""
    anchor: float | None = None
    """0 to 1, the share of the steps that all frames take together; 0.2 if not given."""
    in_between: Whole | None = None
    """Frames between two that are drawn, from the latents between theirs; 0 if not given."""
    interpolation: str | None = None
    """Between the prompts' embeddings: slerp or linear; slerp if not given."""
    easing: str | None = None
    """How the film speeds up and slows down between keyframes: smooth, sine, ...; an unknown name lists them all; linear if not given."""
    pace: str | None = None
    """Perceptual places the frames at equal visible change, as the bundled CLIP sees it; uniform if not given."""
    ping_pong: Flag = False
    """Go back the same way."""
    loop: Flag = False
    """Let the last frame lead into the first."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FrameFlags(SampledFlags):
    """How the frames are drawn."""

    size: str | None = None
    """WIDTHxHEIGHT in pixels; the pictures' or the model's own if not given."""
    tile: str | None = None
    """x, y or xy: directions in which copies of the picture fit each other."""
    region: Several = ()
    """Part of the picture and its own prompt, PLACE=PROMPT or PLACE:WEIGHT=PROMPT, which may end with @negative PROMPT; PLACE is left, right, top, bottom, column1/3, row2/3, LEFT,TOP,RIGHT,BOTTOM as fractions, or a mask; may be given several times."""


@Parameter(name="*", group="Start from pictures and sound")
@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """The pictures and the sound that a film starts from."""

    init_video: Path | None = None
    """film, or folder of pictures, whose frames are drawn anew."""
    strength: float | None = None
    """0 to 1, how far to go from the frames of --init-video; 0.5 if not given."""
    inversion: str | None = None
    """How keyframes' own pictures (@image FILE) become noise: edict or ddim; edict if not given."""
    fit: str | None = None
    """How pictures of another size are brought to the film's: crop, pad or stretch."""
    audio: Path | None = None
    """Sound file that moves the path, and that the film plays."""
    drive: str | None = None
    """What of the sound moves it: energy or onsets; energy if not given."""
    smooth: float | None = None
    """0 moves by the sound alone, 1 evenly; 0 if not given."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlayingFlags(SampledFlags):
    """How music is played."""

    seconds: float | None = None
    """Seconds of a clip, or of each clip of a walk; the model's own if not given."""
    bpm: float | None = None
    """Beats a minute, added to the prompt; the length becomes whole bars."""
    beats: Whole | None = None
    """Beats of a bar; 4 if not given."""
    loop: Flag = False
    """Let the end lead into the beginning."""
    stereo: Flag = False
    """Two channels, where the model hears one: the same sound from two sides."""
    count: Whole | None = None
    """How many clips; 1 if not given."""


@Parameter(name="*", group="Go from prompt to prompt")
@dataclass(frozen=True, kw_only=True)
class WayFlags:
    """Where the music goes."""

    to: Several = ()
    """Prompt to go to, such as "blues @seed 3 @guidance 4"; may be given several times."""
    alpha: float | None = None
    """How far to go and stay: 0 is the prompt, 1 the first of --to, 2 the second."""
    walk: Whole | None = None
    """Clips from the prompt to the last of --to, in one piece."""


@Parameter(name="*", group="Start from a sound")
@dataclass(frozen=True, kw_only=True)
class SoundFlags:
    """The sound that the music starts from."""

    init: Path | None = None
    """sound, or picture of a spectrogram, to play anew; it says how long the music is."""
    strength: float | None = None
    """0 to 1, how far to go from it; 1 forgets it; 0.75 if not given."""
    mask: Path | None = None
    """Picture over the spectrogram that is white where it is played anew; the rest stays."""


@Parameter(name="*", group="Draw a film to it")
@dataclass(frozen=True, kw_only=True)
class FilmFlags:
    """The film to the music."""

    film: Path | None = None
    """Film with the music as its sound (.mp4, .webm), whose pictures move on the beat."""
    film_prompt: Several = ()
    """What the film shows; may be given several times, one after the other; what the music is asked for if not given."""
    film_model: str | None = None
    """Model of its pictures; the bundled one of pictures if not given."""
    film_size: str | None = None
    """WIDTHxHEIGHT in pixels; the model's own if not given."""
    film_fps: float | None = None
    """Frames a second; 12 if not given."""
    film_steps: Whole | None = None
    """Denoising steps of a frame; 12 if not given."""
    film_move: str | None = None
    """From beat to beat: energy, onsets, jump, ...; an unknown name lists them all; energy if not given."""
