"""The `docker` driver: instances that are containers, on the Engines (Docker's, or Podman's compatible one) of one or
many hosts.

definition   what a container is to be: configuration, and what ran before -> the Engine's create body (pure)
survey       the containers of one upstream, and which of them is meant (pure)
engine       one Engine, its calls and errors          engines      from an Engine's URL to a client, made once
credentials  what Docker's own configuration knows about registries
driver       prepare, swap and retire
"""
