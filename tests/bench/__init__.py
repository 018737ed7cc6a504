"""The figures in the README: `make bench`. Never run by CI, whose machines are too noisy for figures."""
