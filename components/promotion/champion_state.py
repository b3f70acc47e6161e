"""Champion state: the ledger replayed entry by entry, so that it can be told for any moment."""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from components.adapters.ledger import Entry
from components.adapters.mlflow.aliases import CHALLENGER_ALIAS, PREVIOUS_ALIAS
from components.core.contracts import ANCHOR_ALIAS, CHAMPION_ALIAS

__all__ = ["ROLES", "ChampionState", "alias_plan", "champion_state_at", "replay_ledger", "version_label"]

ROLES = ("champion", "previous", "anchor", "challenger")
"""What a version can be; a commit entry says it of each in its body."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionState:
    """What the ledger says of a key."""

    champion: int | None = None
    previous: int | None = None
    """Where a roll-back would go: the champion before the present one, roll-backs undone."""
    anchor: int | None = None
    line: tuple[int, ...] = ()
    """The champions in order, without those that were rolled back."""
    ever_aliased: frozenset[int] = frozenset()
    """Every version that ever was champion, previous, anchor or challenger."""
    commits: Mapping[int, Entry] = field(default_factory=dict)
    """Version -> the entry that first made it champion."""
    frozen: Entry | None = None
    """The entry since which nothing is promoted by itself."""
    rolled_back: bool = False
    """Whether the latest change of champion is a roll-back, and nobody has lifted a freeze since."""
    open_intent: Entry | None = None
    """An intent that was neither committed nor aborted: its writer is at it, or died."""
    last_commit: Entry | None = None
    challenge: Entry | None = None
    """The entry that made the present challenger one; ``None`` where there is none."""
    shadows: tuple[Entry, ...] = ()
    """The nights on which the present challenger was scored beside the champion."""
    dropped: Mapping[int, Entry] = field(default_factory=dict)
    """Version -> the entry by which it ceased to be challenger without becoming champion."""

    @property
    def challenger(self) -> int | None:
        """The version that is scored beside the champion."""
        return None if self.challenge is None else int(self.challenge.body["version"])

    @property
    def past_champions(self) -> frozenset[int]:
        """Every version that ever was champion."""
        return frozenset(self.commits) | frozenset(self.line)

    @property
    def bootstrapped(self) -> bool:
        """Whether there ever was a champion."""
        return self.last_commit is not None

    @property
    def break_glass(self) -> Entry | None:
        """The entry by which people let the champion in without the gate; ``None`` where the gate did."""
        entry = None if self.champion is None else self.commits.get(self.champion)
        return entry if entry is not None and entry.body["action"] == "break-glass" else None

    def override_summary(self) -> str:
        """How the glass was broken for the champion, in words; empty where it was not."""
        entry = self.break_glass
        if entry is None:
            return ""
        body = entry.body
        verdict = body["record"]["break_glass"]["overruled"]["verdict"]
        return (
            f"version {body['champion']} was let in by {body['by']} over a verdict of {verdict}, {entry.at[:16]}Z, "
            f"entry {entry.seq}: {body['reason']}"
        )

    def aliases(self) -> dict[str, int | None]:
        """Where the registry's aliases belong."""
        plan = alias_plan({role: getattr(self, role) for role in ROLES[:3]})
        return plan | {CHALLENGER_ALIAS: self.challenger}

    def frozen_because(self) -> str:
        """The freeze in words; empty where there is none."""
        if self.frozen is None:
            return ""
        body = self.frozen.body
        return f"{body['reason']} (by {body['by']}, {self.frozen.at[:16]}Z, entry {self.frozen.seq})"

    def after(self, champion: int, *, action: str, anchor: int | None) -> dict[str, Any]:
        """What a move of ``champion`` would make of the aliases: the part of an intent that says where they go."""
        line = _moved(self.line, champion, action)
        return {
            "action": action,
            "from": self.champion,
            "champion": champion,
            "previous": line[-2] if len(line) > 1 else None,
            "anchor": anchor,
        }


def alias_plan(where: Mapping[str, Any]) -> dict[str, int | None]:
    """Alias -> version of an intent, a commit or a standing; the champion's comes last, as it is the one served."""
    return {PREVIOUS_ALIAS: where["previous"], ANCHOR_ALIAS: where["anchor"], CHAMPION_ALIAS: where["champion"]}


def version_label(version: int | None) -> str:
    """A champion in words."""
    return "no version" if version is None else f"version {version}"


def replay_ledger(entries: Iterable[Entry]) -> ChampionState:
    """Read the entries in order."""
    state = ChampionState()
    for entry in entries:
        state = _READERS[entry.kind](state, entry)
    return state


def champion_state_at(entries: Iterable[Entry], moment: dt.datetime) -> ChampionState:
    """What the ledger said at a moment, with its zone."""
    return replay_ledger(entry for entry in entries if entry.time <= moment)


def _moved(line: tuple[int, ...], champion: int, action: str) -> tuple[int, ...]:
    if action == "rollback" and champion in line:
        return line[: line.index(champion) + 1]
    return (*line, champion)


def _commit(state: ChampionState, entry: Entry) -> ChampionState:
    body = entry.body
    champion, action = int(body["champion"]), str(body["action"])
    line = _moved(state.line, champion, action)
    if action == "adopt" and body["previous"] is not None:
        line = (int(body["previous"]), champion)
    return replace(
        state,
        champion=champion,
        previous=body["previous"],
        anchor=body["anchor"],
        line=line,
        ever_aliased=state.ever_aliased | {int(body[role]) for role in ROLES if body.get(role) is not None},
        commits=dict(state.commits) | ({} if champion in state.commits else {champion: entry}),
        # Whoever takes a model back does not want the next night to bring it again.
        frozen=entry if action == "rollback" else state.frozen,
        rolled_back=action == "rollback",
        open_intent=None,
        last_commit=entry,
        challenge=None if champion == state.challenger else state.challenge,
        shadows=() if champion == state.challenger else state.shadows,
    )


def _challenge(state: ChampionState, entry: Entry) -> ChampionState:
    return replace(state, challenge=entry, shadows=(), ever_aliased=state.ever_aliased | {int(entry.body["version"])})


def _drop(state: ChampionState, entry: Entry) -> ChampionState:
    dropped = dict(state.dropped) | {int(entry.body["version"]): entry}
    return replace(state, challenge=None, shadows=(), dropped=dropped)


_READERS: dict[str, Callable[[ChampionState, Entry], ChampionState]] = {
    "intent": lambda state, entry: replace(state, open_intent=entry),
    "commit": _commit,
    "abort": lambda state, _: replace(state, open_intent=None),
    "freeze": lambda state, entry: replace(state, frozen=entry),
    "unfreeze": lambda state, _: replace(state, frozen=None, rolled_back=False),
    "challenge": _challenge,
    "shadow": lambda state, entry: replace(state, shadows=(*state.shadows, entry)),
    "drop": _drop,
}
