"""From a request to pictures: `requests` describes them without torch, `sample` denoises, `image` draws."""
