"""Music by diffusion of spectrograms: of any length, looped, or over a given sound."""
