"""Modelkeep: a model registry and deployment platform in one package.

This file is the public face and nothing more: it names the version. It starts nothing and imports nothing heavy.
"""

__version__ = "0.1.0"
