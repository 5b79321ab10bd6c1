"""Projects as MLflow's client sees them: workspaces. Each function is one act.

A project is only a name until something is in it, and making something in it makes it; so there is nothing to
create, change or delete here. Rights are held on projects (`access`).
"""

from modelkeep.core import errors, values
from modelkeep.core.access import Verb
from modelkeep.core.values import DEFAULT_PROJECT
from modelkeep.service.act import Act
from modelkeep.store import projects

PROJECTS_MAX = 1_000
"""Projects in one list: more than an organisation has teams; the list has no pages."""


def list_projects(act: Act) -> tuple[str, ...]:
    """The projects that the caller may read and that have something in them, and the default one."""
    found = {DEFAULT_PROJECT, *projects.names(act.tx, PROJECTS_MAX)}
    return tuple(name for name in sorted(found) if act.may(Verb.READ, name))


def get_project(act: Act, name: str) -> str:
    """The name of a project that the caller may read, whether or not something is in it yet.

    Raises:
        InvalidName: no project can be called so. NotFound: the caller may not read it.
    """
    values.check_name(name, "workspace")
    if not act.may(Verb.READ, name):
        raise errors.NotFound(f"There is no workspace {name}, or you may not read it.", name=name)
    return name
