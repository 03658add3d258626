"""`python -m cachebus` is the `cachebus` command."""

from cachebus.cli import entry

entry()
