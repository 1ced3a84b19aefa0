"""The corpora that the bundled models learn from: emoji scenes and composed music."""
