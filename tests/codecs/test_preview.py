"""Does the quick look find the linear map from latents to colours?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from reverie.codecs.image import ImageCodec, fit_preview
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage

MATRIX = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.3], [0.2, 0.0, 0.7], [0.5, 0.5, 0.5]])


class Linear(ImageCodec):
    """Encode each cell's mean colour by a matrix."""

    def encode_tensor(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("cr,brhw->bchw", MATRIX, F.avg_pool2d(images, self.factor)) + 0.25


def test_a_linear_code_is_read_exactly(tiny: Pipeline) -> None:
    codec = Linear(tiny.autoencoder)
    colours = torch.rand(2, 3, 3, 5) * 2 - 1
    pictures = fit_preview(codec).pictures(codec.encode_tensor(F.interpolate(colours, scale_factor=8)))
    assert [picture.size for picture in pictures] == [(40, 24)] * 2
    centre = pictures[1].resize((5, 3), Image.Resampling.BOX)
    told = torch.tensor(list(centre.tobytes())).view(3, 5, 3).permute(2, 0, 1) / 127.5 - 1
    assert (told - colours[1]).abs().mean() < 0.15


def test_any_autoencoder_has_a_preview(tiny: Pipeline) -> None:
    preview = fit_preview(tiny.codec)
    assert preview.matrix.isfinite().all()
    request = TextToImage(prompt="a bear", seed=1, steps=2)
    sizes = [event.preview()[0].size for event in tiny.stream(request, preview=preview.pictures)]
    assert sizes == [(32, 32)] * 2
