"""The mathematics of sound as spectrograms: torch alone, no files, no pictures."""
