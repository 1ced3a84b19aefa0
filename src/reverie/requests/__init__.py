"""Everything that can be asked for, as frozen objects that are JSON, and the files that carry them; no torch here."""
