"""The tests of Modelkeep, floor by floor; a package, so that `tests.servers` is ours and no library's."""
