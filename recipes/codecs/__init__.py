"""Codecs behind one protocol: ours, and those that it is compared with."""
