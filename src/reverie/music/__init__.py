"""How does a request become music? Prompts to spectrograms to sound, of any length, looped, or over a given sound."""
