"""How does a film come from keyframes? Requests, the path between them, its pace, and the frames drawn along it."""
