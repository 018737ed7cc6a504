"""Probes: is what answers at an address healthy?"""
