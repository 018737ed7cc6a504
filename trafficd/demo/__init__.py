"""`trafficd demo`: a real Caddy, three instances of a sample application, load, and a deploy."""

from trafficd.demo.run import main

__all__ = ["main"]
