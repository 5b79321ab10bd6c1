"""The machinery behind examples/demo.py: telling, typing, starting, watching. The story stands there."""
