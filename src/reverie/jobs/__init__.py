"""Jobs: from a request to finished files, as a stream of events."""
