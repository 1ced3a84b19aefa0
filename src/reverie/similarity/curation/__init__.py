"""Curation of captioned collections as LAION did it, on one machine or many."""
