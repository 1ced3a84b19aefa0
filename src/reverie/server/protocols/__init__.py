"""Protocols: other programs' ways to ask for pictures, each a router over the `Dispatcher`."""
