"""How does a film start and end in pictures of the user's own? With the noise that the model would draw them from."""

from __future__ import annotations

from PIL import Image

from reverie.codecs.image import ImageCodec
from reverie.diffusion.inversion import INVERTERS, Inverted, invert
from reverie.diffusion.names import choose
from reverie.diffusion.step import Sigmas
from reverie.generate.conditioning import Prompts
from reverie.generate.sample import Bind, guided_denoiser
from reverie.requests.pictures import TextToImage
from reverie.system import StableDiffusion


def invert_picture(
    system: StableDiffusion,
    codec: ImageCodec,
    request: TextToImage,
    prompts: Prompts,
    sigmas: Sigmas,
    picture: Image.Image,
    inversion: str = "edict",
    *,
    bind: Bind | None = None,
) -> Inverted:
    """Find the noise at sigmas[0] from which a picture is drawn, by a name of INVERTERS.

    `INVERTERS[inversion].down` draws it, from `x` and `past`, with the same request, prompts, levels and bind; a film
    between two pictures goes `between` what is found for them. The picture has the size of the film. Levels that begin
    below the schedule's highest leave more of the picture in the noise: films through them fade rather than change.

    One picture at a time, so that it does not depend on its batch. Raises ReverieError for an unknown inversion, and
    for a picture that is not of whole latents.
    """
    inverter = choose("inversion", inversion, INVERTERS)
    denoise = guided_denoiser(system, request, prompts, sigmas, 1, bind)
    return invert(denoise, codec.encode([picture]), sigmas, inverter)
