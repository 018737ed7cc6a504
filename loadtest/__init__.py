"""Sends requests, never one of them twice, and judges the answers."""
