"""One file per technology behind a port, named `<port>_<technology>.py`; nothing is imported here.

What this package does not do: decide. It knows the ports, the core and its one vendor library.
"""
