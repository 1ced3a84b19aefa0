"""The server: jobs over HTTP. The web process queues and tells, worker processes compute."""
