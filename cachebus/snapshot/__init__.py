"""Copies of a cache as one C-DNS file: for a node that joins, and on disk.

`copy` makes and takes them, `server` and `joining` move them between nodes.
"""
