"""`python -m trafficd`."""

from trafficd.cli import main

main()
