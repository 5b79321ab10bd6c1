"""What Alembic runs for each migration, on the connection and in the transaction of `store.migrate`.

It reads no file of settings and knows no address; the only command line for it is `modelkeep server migrate`.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,
)
context.run_migrations()
