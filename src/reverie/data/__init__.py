"""Data sets of captioned pictures and sounds, read in any order."""
