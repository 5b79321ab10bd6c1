"""The client's verbs around people and records: who one is, tokens, grants, the audit log, and the server's
health.

Secrets pass through once, in the answer that makes them, and are kept nowhere.
"""

from collections.abc import Iterator, Sequence

from modelkeep.client.answers import Listing, Page
from modelkeep.client.transport import CHUNK_BYTES, V1, Request, Wire, given, segment
from modelkeep.core.access import Effect, Grant, Principal, PrincipalKind, Role, TokenInfo, Verb
from modelkeep.core.answers import Done, EventPage, Health, NewToken, Verification, WhoAmI
from modelkeep.core.events import ChainedEvent


class AccessVerbs(Wire):
    """Who may what, and who did what."""

    def whoami(self) -> WhoAmI:
        """Who the server takes you for, and what you may do."""
        return self.get(WhoAmI, f"{V1}/whoami")

    def list_principals(self, *, limit: int | None = None) -> Listing[Principal]:
        """People and programs, by name."""
        return self.listing(Page[Principal], f"{V1}/principals", limit)

    def create_principal(self, name: str, *, kind: PrincipalKind | str = PrincipalKind.USER) -> Principal:
        """Add a person or a program (`service`), who then may do nothing yet. Raises PrincipalExists."""
        return self.send(Principal, "POST", f"{V1}/principals", {"name": name, "kind": PrincipalKind(kind)})

    def disable_principal(self, name: str) -> Principal:
        """Shut a person or program out; their tokens stop working. Raises PrincipalNotFound."""
        return self.send(Principal, "POST", f"{V1}/principals/{segment(name)}/disable")

    def list_tokens(self, *, limit: int | None = None) -> Listing[TokenInfo]:
        """One's own tokens, without their secrets; an admin sees all."""
        return self.listing(Page[TokenInfo], f"{V1}/tokens", limit)

    def create_token(
        self,
        label: str,
        *,
        principal: str | None = None,
        expires_s: float | None = None,
        verbs: Sequence[Verb | str] | None = None,
        project: str | None = None,
    ) -> NewToken:
        """Make a token, for oneself when nobody is named; its secret is in this answer and nowhere else.

        Raises:
            PrincipalNotFound: there is nobody of that name.
        """
        words = None if verbs is None else tuple(Verb(verb) for verb in verbs)
        body = given(label=label, principal=principal, expires_s=expires_s, verbs=words, project=project)
        return self.send(NewToken, "POST", f"{V1}/tokens", body)

    def revoke_token(self, token: str) -> TokenInfo:
        """End a token by its id. Raises TokenNotFound."""
        return self.send(TokenInfo, "DELETE", f"{V1}/tokens/{segment(token)}")

    def list_grants(self, *, limit: int | None = None) -> Listing[Grant]:
        """Who holds which role where."""
        return self.listing(Page[Grant], f"{V1}/grants", limit)

    def add_grant(
        self,
        principal: str,
        role: Role | str,
        *,
        project: str | None = None,
        model: str | None = None,
        effect: Effect | str = Effect.ALLOW,
    ) -> Grant:
        """Give or deny a role on a model (with its project), on a project, or everywhere."""
        body = given(
            principal=principal, role=Role(role), project=project, model=model, effect=Effect(effect)
        )
        return self.send(Grant, "POST", f"{V1}/grants", body)

    def remove_grant(self, grant: str) -> Done:
        """Take a grant away."""
        return self.send(Done, "DELETE", f"{V1}/grants/{segment(grant)}")

    def list_events(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        model: str | None = None,
        kind: str | None = None,
        subject: str | None = None,
        newest: bool = False,
    ) -> EventPage:
        """A page of the audit log: after a sequence and oldest first, or the newest first."""
        query = {
            "after": after,
            "limit": limit,
            "model": model,
            "kind": kind,
            "subject": subject,
            "newest": newest,
        }
        return self.get(EventPage, f"{V1}/audit/events", **query)

    def events(self, *, after: int = 0, model: str | None = None) -> Iterator[ChainedEvent]:
        """The whole audit log after a sequence, oldest first, fetched while it is walked."""
        while True:
            page = self.list_events(after=after, limit=1_000, model=model)
            yield from page.items
            if page.next_after is None:
                return
            after = page.next_after

    def verify_audit(self, head: str | None = None) -> Verification:
        """Have the server walk the whole audit log.

        Args:
            head: `SEQ:HASH`, as `Verification.head` of an earlier walk was; the log must still hold it.

        Raises:
            BrokenChain: names the first event that does not fit.
        """
        return self.send(Verification, "GET", f"{V1}/audit/verification", query={"head": head}, patient=True)

    def export_audit(self, *, form: str = "jsonl", after: int = 0) -> Iterator[bytes]:
        """The audit log in pieces, as JSON lines (with leaf and link) or CSV."""
        request = Request(
            method="GET",
            path=f"{V1}/audit/export",
            query={"format": form, "after": after},
            headers={"Accept": "*/*"},
        )
        with self.http.open(request) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk

    def health(self) -> Health:
        """Whether the server is alive, and its release."""
        return self.get(Health, "/health")

    def ready(self) -> Health:
        """Whether the server's store answers."""
        return self.get(Health, "/ready")
