"""The registry's state twice: replayed from its events by the plainest code, and read from its tables.

Each kind of event is replayed by one function, or is known to change nothing here. What no event speaks of is
left out on both sides: identifiers and times of rows, ages of routes, counts of traffic, leases and open
uploads.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, select

from modelkeep.core import codec, registration
from modelkeep.core.catalog import ModelVersion, StageGraph
from modelkeep.core.events import Event, EventKind
from modelkeep.core.promotion import Vote
from modelkeep.core.rollout import Endpoint, Rollout, RolloutState
from modelkeep.core.values import DEFAULT_PROJECT, ModelName
from modelkeep.store import schema
from modelkeep.store.transaction import Transaction

State = dict[str, dict[Any, dict[str, Any]]]
"""Rows by the name of their kind and by what they are known by."""
Fold = Callable[[State, Event], None]

KINDS = tuple("models versions aliases policies requests endpoints rollouts principals tokens grants".split())
SETTINGS = ("plan", "key_header", "slow_ms", "lease_s", "workers", "log_ppm", "privacy", "load")
FINISHED = {state.value for state in RolloutState if state.finished}


def empty() -> State:
    """A registry in which nothing has happened."""
    return {kind: {} for kind in KINDS}


def replay(state: State, event: Event) -> None:
    """Let one event happen.

    Raises:
        KeyError: the event is about something of which no event said that it is there; or its kind is not
            replayed at all.
    """
    if event.kind not in CHANGES_NOTHING and event.kind not in BESIDE:
        FOLDS[event.kind](state, event)


# ------------------------------------------------------------------------------------------------ the catalog


def _model_created(state: State, event: Event) -> None:
    body = event.body
    state["models"][event.model] = {
        "description": body["description"],
        "owner": body["owner"],
        "tags": dict(body["tags"]),
        "stages": body["stages"],
    }


def _model_changed(state: State, event: Event) -> None:
    _relabel(state["models"][event.model], event.body)


def _relabel(row: dict[str, Any], body: dict[str, Any]) -> None:
    """Descriptions, owners and tags are told as from -> to."""
    for name in ("description", "owner"):
        if name in body:
            row[name] = body[name]["to"]
    for key, change in body.get("tags", {}).items():
        row["tags"].pop(key, None)
        if change["to"] is not None:
            row["tags"][key] = change["to"]


def _model_renamed(state: State, event: Event) -> None:
    """Whatever is known by the model's name, or has it in a cell, has the new one."""
    old, new = event.body["from"], event.body["to"]
    for kind in ("models", "policies"):
        if old in state[kind]:
            state[kind][new] = state[kind].pop(old)
    for kind in ("versions", "aliases"):
        rows = state[kind].items()
        state[kind] = {((new, key[1]) if key[0] == old else key): row for key, row in rows}
    for kind in ("requests", "endpoints", "rollouts"):
        for row in state[kind].values():
            if row["model"] == old:
                row["model"] = new
    project, _, name = old.rpartition("/")
    for row in state["grants"].values():
        if (row["project"], row["model"]) == (project or DEFAULT_PROJECT, name):
            row["model"] = new.rpartition("/")[2]


def _model_deleted(state: State, event: Event) -> None:
    del state["models"][event.model]
    state["versions"] = {key: row for key, row in state["versions"].items() if key[0] != event.model}


def _stages_changed(state: State, event: Event) -> None:
    state["models"][event.model]["stages"] = event.body["to"]


def _version_registered(state: State, event: Event) -> None:
    body = event.body
    state["versions"][event.model, event.number] = {
        "semver": body["semver"],
        "digest": body["digest"],
        "record": body["record"],
        "parent": body["parent"],
        "description": body["description"],
        "tags": dict(body["tags"]),
        "tombstone": None,
        "yanked": None,
        "stage": None,
    }


def _version(state: State, event: Event) -> dict[str, Any]:
    return state["versions"][event.model, event.number]


def _version_changed(state: State, event: Event) -> None:
    _relabel(_version(state, event), event.body)


def _version_deleted(state: State, event: Event) -> None:
    del state["versions"][event.model, event.number]


def _marked(mark: str, *, set_to_reason: bool) -> Fold:
    def fold(state: State, event: Event) -> None:
        _version(state, event)[mark] = event.reason if set_to_reason else None

    return fold


def _alias_set(state: State, event: Event) -> None:
    state["aliases"][event.model, event.body["alias"]] = {
        "number": event.number,
        "protected": event.body["protected"],
    }


def _alias_deleted(state: State, event: Event) -> None:
    del state["aliases"][event.model, event.body["alias"]]


# -------------------------------------------------------------------------------------------------- promotion


def _stage_moved(state: State, event: Event) -> None:
    _version(state, event)["stage"] = None if event.body["first"] else event.body["to"]
    displaced = event.body["displaced"]
    if displaced is not None:
        left = state["versions"][event.model, displaced["number"]]
        left["stage"] = None if displaced["first"] else displaced["to"]


def _policy_changed(state: State, event: Event) -> None:
    scope = event.subject.removeprefix("policy/")
    state["policies"][scope] = {"version": event.body["version"], "digest": event.body["digest"]}


def _request_opened(state: State, event: Event) -> None:
    state["requests"][event.subject] = {
        "model": event.model,
        "number": event.number,
        "to": event.body["to"],
        "by": event.actor.name,
        "reason": event.reason,
        "state": "open",
        "votes": [],
    }


def _request_reviewed(state: State, event: Event) -> None:
    votes = state["requests"][event.subject]["votes"]
    vote = event.body["vote"]
    if vote != Vote.COMMENT:
        for former in votes:
            if former["by"] == event.actor.name and former["vote"] != Vote.COMMENT:
                former["counts"] = False
    at = codec.format_time(event.at)
    votes.append({"by": event.actor.name, "vote": vote, "at": at, "counts": True})


def _request_dismissed(state: State, event: Event) -> None:
    fallen = {(one["by"], one["at"]) for one in event.body["dismissed"]}
    for vote in state["requests"][event.subject]["votes"]:
        if (vote["by"], vote["at"]) in fallen:
            vote["counts"] = False


def _request_closed(state: State, event: Event) -> None:
    state["requests"][event.subject]["state"] = event.body["state"]


# ---------------------------------------------------------------------------------------------------- rollout


def _endpoint_created(state: State, event: Event) -> None:
    state["endpoints"][event.subject] = {
        "model": event.model,
        "stage": event.body["stage"],
        **{name: event.body[name] for name in SETTINGS},
        "stable": None,
        "previous": None,
        "rollout": None,
    }


def _endpoint_changed(state: State, event: Event) -> None:
    row = state["endpoints"][event.subject]
    row.update({name: event.body[name] for name in SETTINGS if name in event.body})
    if "stable" in event.body:
        row.update(stable=event.body["stable"], previous=event.body.get("previous"))


def _endpoint_deleted(state: State, event: Event) -> None:
    del state["endpoints"][event.subject]


def _rollout_started(state: State, event: Event) -> None:
    state["endpoints"][event.subject]["rollout"] = event.body["rollout"]
    state["rollouts"][event.body["rollout"]] = {
        "endpoint": event.subject,
        "model": event.model,
        "candidate": event.number,
        "reason": event.reason,
        "state": "preparing",
        "step": 0,
        "weight_ppm": 0,
        "paused": False,
    }


def _rollout_moved(state: State, event: Event) -> None:
    """What a look, or a person's word, has brought about."""
    row = state["rollouts"][event.body["rollout"]]
    if "paused" in event.body:
        row["paused"] = event.body["paused"] is not None
        return
    if event.kind not in (EventKind.ROLLOUT_HELD, EventKind.ROLLOUT_STEPPED, EventKind.ROLLOUT_TAKEN_OUT):
        row["paused"] = False  # a step on somebody's word leaves a pause a pause
    row.update({name: event.body[name] for name in ("state", "step", "weight_ppm")})
    endpoint = state["endpoints"][event.subject]
    others = event.body.get("others") or ()
    lost = {other["number"] for other in others if other["out"] is not None}
    if event.kind is EventKind.ROLLOUT_ROLLING_BACK:
        lost = {row["candidate"], *(other["number"] for other in others)}
    if event.kind is EventKind.ROLLOUT_TAKEN_OUT and not event.body["weight_ppm"]:
        lost.add(row["candidate"])
    if endpoint["previous"] in lost:
        endpoint["previous"] = None
    if row["state"] in FINISHED:
        endpoint["rollout"] = None
    if event.kind is EventKind.ROLLOUT_SUCCEEDED:
        endpoint.update(previous=endpoint["stable"], stable=row["candidate"])


# ----------------------------------------------------------------------------------------------------- access


def _principal_created(state: State, event: Event) -> None:
    state["principals"][event.subject] = {"kind": event.body["principal_kind"], "disabled": False}


def _principal_disabled(state: State, event: Event) -> None:
    state["principals"][event.subject]["disabled"] = True


def _token_created(state: State, event: Event) -> None:
    told = {name: event.body[name] for name in ("principal", "label", "expires_at", "verbs", "project")}
    state["tokens"][event.subject] = {**told, "revoked": False}


def _token_revoked(state: State, event: Event) -> None:
    state["tokens"][event.subject]["revoked"] = True


def _grant_added(state: State, event: Event) -> None:
    state["grants"][event.body["grant"]] = {
        "principal": event.subject,
        "role": event.body["role"],
        "project": event.body["project"],
        "model": event.body["on_model"],
        "effect": event.body["effect"],
    }


def _grant_removed(state: State, event: Event) -> None:
    del state["grants"][event.body["grant"]]


FOLDS: dict[EventKind, Fold] = {
    EventKind.MODEL_CREATED: _model_created,
    EventKind.MODEL_CHANGED: _model_changed,
    EventKind.MODEL_RENAMED: _model_renamed,
    EventKind.MODEL_DELETED: _model_deleted,
    EventKind.VERSION_REGISTERED: _version_registered,
    EventKind.VERSION_CHANGED: _version_changed,
    EventKind.VERSION_DELETED: _version_deleted,
    EventKind.VERSION_TOMBSTONED: _marked("tombstone", set_to_reason=True),
    EventKind.VERSION_CLEARED: _marked("tombstone", set_to_reason=False),
    EventKind.VERSION_YANKED: _marked("yanked", set_to_reason=True),
    EventKind.VERSION_UNYANKED: _marked("yanked", set_to_reason=False),
    EventKind.ALIAS_SET: _alias_set,
    EventKind.ALIAS_DELETED: _alias_deleted,
    EventKind.STAGE_MOVED: _stage_moved,
    EventKind.STAGES_CHANGED: _stages_changed,
    EventKind.REQUEST_OPENED: _request_opened,
    EventKind.REQUEST_REVIEWED: _request_reviewed,
    EventKind.REQUEST_DISMISSED: _request_dismissed,
    EventKind.REQUEST_CLOSED: _request_closed,
    EventKind.POLICY_CHANGED: _policy_changed,
    EventKind.ENDPOINT_CREATED: _endpoint_created,
    EventKind.ENDPOINT_CHANGED: _endpoint_changed,
    EventKind.ENDPOINT_DELETED: _endpoint_deleted,
    EventKind.ROLLOUT_STARTED: _rollout_started,
    EventKind.ROLLOUT_STEPPED: _rollout_moved,
    EventKind.ROLLOUT_HELD: _rollout_moved,
    EventKind.ROLLOUT_TAKEN_OUT: _rollout_moved,
    EventKind.ROLLOUT_RESUMED: _rollout_moved,
    EventKind.ROLLOUT_SUCCEEDED: _rollout_moved,
    EventKind.ROLLOUT_ROLLING_BACK: _rollout_moved,
    EventKind.ROLLOUT_ROLLED_BACK: _rollout_moved,
    EventKind.ROLLOUT_FAILED: _rollout_moved,
    EventKind.ROLLOUT_CANCELLED: _rollout_moved,
    EventKind.ROLLOUT_SUPERSEDED: _rollout_moved,
    EventKind.ROLLOUT_CONCLUDED: _rollout_moved,
    EventKind.PRINCIPAL_CREATED: _principal_created,
    EventKind.PRINCIPAL_DISABLED: _principal_disabled,
    EventKind.TOKEN_CREATED: _token_created,
    EventKind.TOKEN_REVOKED: _token_revoked,
    EventKind.GRANT_ADDED: _grant_added,
    EventKind.GRANT_REMOVED: _grant_removed,
}
"""How each kind of event changes the state."""

CHANGES_NOTHING: dict[EventKind, str] = {
    EventKind.PROMOTION_GRANTED: "the rollout that carries it out has an event of its own",
    EventKind.PROMOTION_DENIED: "what was refused did not happen",
    EventKind.ENDPOINT_DISAGREED: "what mends it has events of its own",
    EventKind.ENDPOINT_AGREED: "what mended it had events of its own",
    EventKind.ENDPOINT_DRILL_BEGUN: "the gateway moves, and puts everything back",
    EventKind.ENDPOINT_DRILL_REFUSED: "nothing moved",
    EventKind.ENDPOINT_DRILLED: "the gateway put everything back; the registry moved nothing",
    EventKind.ACCESS_REFUSED: "what was refused did not happen",
    EventKind.INTEGRITY_FAILED: "the record stays what it is; its bytes are to be sent again",
}
"""The kinds that only say what happened, each with why nothing follows from it."""

_BESIDE = {
    "experiment": "fsck of tracking folds it, held against tampering in tests/service/test_tracking_fsck.py",
    "run": "what a run logs is in no event; fsck of tracking folds the rest",
    "logged_model": "what it holds is in no event; fsck of tracking folds the rest",
    "webhook": "its secret and the path of its receiver are in no event",
}
BESIDE: dict[EventKind, str] = {
    kind: _BESIDE[kind.value.partition(".")[0]]
    for kind in EventKind
    if kind.value.partition(".")[0] in _BESIDE
}
"""The kinds whose part of the state the events vouch for, but do not hold, or that are folded elsewhere."""


# -------------------------------------------------------------------------------- what stands in the tables


def stored(tx: Transaction) -> State:
    """The same state as the registry keeps it, read by plain selects."""
    m, v = schema.models, schema.versions
    state = empty()
    tags = _tags(tx, schema.model_tags, schema.model_tags.c.model_id)
    names: dict[str, str] = {}
    for row in _rows(tx, select(m)):
        names[row["id"]] = str(ModelName(row["project"], row["name"]))
        if row["deleted_at"] is None:
            state["models"][names[row["id"]]] = {
                "description": row["description"],
                "owner": row["owner"],
                "tags": tags.get(row["id"], {}),
                "stages": _plain(codec.decode(row["stages"], StageGraph)),
            }
    places = {(row["model_id"], row["number"]): row["stage"] for row in _rows(tx, select(schema.occupancy))}
    tags = _tags(tx, schema.version_tags, schema.version_tags.c.version_id)
    for row in _rows(tx, select(v).where(v.c.status == "ready")):
        version = codec.decode(row["document"], ModelVersion)
        state["versions"][names[row["model_id"]], row["number"]] = {
            "semver": row["semver"],
            "digest": row["digest"],
            "record": registration.record_digest(version),
            "parent": row["parent"],
            "description": row["description"],
            "tags": tags.get(row["id"], {}),
            "tombstone": row["tombstone"],
            "yanked": row["yanked"],
            "stage": places.get((row["model_id"], row["number"])),
        }
    for row in _rows(tx, select(schema.aliases)):
        state["aliases"][names[row["model_id"]], row["alias"]] = {
            "number": row["number"],
            "protected": bool(row["protected"]),
        }
    for row in _rows(tx, select(schema.policies).order_by(schema.policies.c.version)):
        project, _, model = row["scope"].partition("/")
        scope = str(ModelName(project, model)) if model else f"{project}/" if project else "installation"
        state["policies"][scope] = {"version": row["version"], "digest": row["digest"]}
    _read_requests(tx, state, names)
    _read_traffic(tx, state)
    _read_access(tx, state)
    return state


def _read_requests(tx: Transaction, state: State, names: dict[str, str]) -> None:
    for row in _rows(tx, select(schema.requests)):
        document = codec.decode(row["document"], dict[str, Any])
        state["requests"][f"request/{row['id']}"] = {
            "model": names[row["model_id"]],
            "number": row["number"],
            "to": row["stage"],
            "by": row["created_by"],
            "reason": document["reason"],
            "state": row["state"],
            "votes": [],
        }
    for row in _rows(tx, select(schema.approvals).order_by(schema.approvals.c.position)):
        state["requests"][f"request/{row['request_id']}"]["votes"].append(
            {
                "by": row["principal"],
                "vote": row["vote"],
                "at": row["at"],
                "counts": row["dismissed"] is None,
            }
        )


def _read_traffic(tx: Transaction, state: State) -> None:
    for row in _rows(tx, select(schema.endpoints)):
        endpoint = codec.decode(row["document"], Endpoint)
        state["endpoints"][f"endpoint/{endpoint.name}"] = {
            "model": str(endpoint.model),
            "stage": endpoint.stage,
            **{name: _plain(getattr(endpoint, name)) for name in SETTINGS},
            "stable": endpoint.stable,
            "previous": endpoint.previous,
            "rollout": endpoint.rollout,
        }
    for row in _rows(tx, select(schema.rollouts)):
        rollout = codec.decode(row["document"], Rollout)
        state["rollouts"][rollout.id] = {
            "endpoint": f"endpoint/{rollout.endpoint}",
            "model": str(rollout.model),
            "candidate": rollout.candidate,
            "reason": rollout.reason,
            "state": rollout.state.value,
            "step": rollout.step,
            "weight_ppm": rollout.weight_ppm,
            "paused": rollout.paused is not None,
        }


def _read_access(tx: Transaction, state: State) -> None:
    for row in _rows(tx, select(schema.principals)):
        kept = {"kind": row["kind"], "disabled": bool(row["disabled"])}
        state["principals"][f"principal/{row['name']}"] = kept
    for row in _rows(tx, select(schema.tokens)):
        state["tokens"][f"token/{row['id']}"] = {
            "principal": row["principal"],
            "label": row["label"],
            "expires_at": row["expires_at"],
            "verbs": codec.decode(row["verbs"], list[str]) if row["verbs"] is not None else None,
            "project": row["project"],
            "revoked": row["revoked_at"] is not None,
        }
    for row in _rows(tx, select(schema.grants)):
        state["grants"][row["id"]] = {
            "principal": f"principal/{row['principal']}",
            "role": row["role"],
            "project": row["project"],
            "model": row["model"],
            "effect": row["effect"],
        }


def _plain(value: Any) -> Any:
    """What an event's body holds of it."""
    return codec.decode(codec.encode(value), Any)


def _rows(tx: Transaction, statement: Select[Any]) -> list[dict[str, Any]]:
    names = [column.name for column in statement.selected_columns]
    return [dict(zip(names, row, strict=True)) for row in tx.all(statement)]


def _tags(tx: Transaction, table: Any, owner: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for which, key, value in tx.all(select(owner, table.c.key, table.c.value)):
        found.setdefault(which, {})[key] = value
    return found
