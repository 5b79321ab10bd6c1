"""The command line: thin commands over the client, and the processes of a server and a gateway.

It decides nothing and keeps nothing; what a command prints is what the server answered.
"""
