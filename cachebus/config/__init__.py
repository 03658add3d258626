"""YAML to checked, frozen models; every error carries file, line, column and the key's path.

`load` is the way in. Key files and TSIG key text are in `cachebus.config.keyfile`.
"""

from cachebus.config.loader import admin_socket, load, loads
from cachebus.config.models import Config
from cachebus.config.problems import ConfigErrors, Problem

__all__ = ["Config", "ConfigErrors", "Problem", "admin_socket", "load", "loads"]
