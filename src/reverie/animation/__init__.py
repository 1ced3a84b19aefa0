"""Films: the path between keyframes, its pace, and the frames drawn along it."""
