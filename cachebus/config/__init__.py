"""YAML to checked, frozen models; every error carries file, line, column and the key's path."""
