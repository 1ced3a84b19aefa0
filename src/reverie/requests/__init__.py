"""Requests: everything a user can ask for, frozen, checked and JSON-able, without torch."""
