"""Between pictures (later sound and film) and latents: `pictures` needs Pillow alone, `image` needs torch."""
