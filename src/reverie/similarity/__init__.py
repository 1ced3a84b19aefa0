"""Likeness of words and pictures: the cosine of CLIP embeddings, and what it is good for."""
