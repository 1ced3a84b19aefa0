"""Drawing pictures: `conditioning` encodes prompts, `sample` denoises, `image` draws."""
