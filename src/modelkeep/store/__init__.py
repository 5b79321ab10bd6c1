"""The one relational store, on SQLite and Postgres: the schema, the one way to read and write, the event log,
and the facts of each column. It holds no rule about what may happen; those are the core's.

    database -> writer -> transaction -> events -> statements, dialects (sqlite, postgres) -> schema
    catalog, promotion, rollout, access: the statements of each column, run on a transaction they are given
"""
