"""The mathematics of diffusion over torch alone: schedules, denoisers, guidance, noise and samplers; no model."""
