"""The web floor: every row of the route table, the door in front of it, and the process that listens."""
