"""A canary beside its stable version: from the answers in the access log to a verdict."""
