"""`trafficd demo`: a real Caddy, three instances of a sample application, load, and a deploy."""
