"""Models on disk: the folder layout of diffusers and transformers, read (`load`) and written (`save`)."""
