"""The networks: torch modules whose parameters are named as in diffusers and transformers, each with its config."""
