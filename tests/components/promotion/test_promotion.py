"""Moving aliases under crashes, late writers and people: one move, one commit, and the registry as the ledger says."""

import datetime as dt
import itertools
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.adapters.lease import Clock, LeaseHeldError, StaleLeaseError, utc_now
from components.adapters.ledger import LedgerBrokenError
from components.adapters.mlflow.tracking import open_run
from components.adapters.storage import open_storage
from components.config import MlflowSettings
from components.core.errors import InputError, TransientError
from components.promotion.alias_transaction import AliasManager
from components.promotion.champion_state import champion_state_at, replay_ledger
from components.promotion.takeover import promote_version
from components.promotion.version_retention import delete_version
from tests.helpers.edges import at_once, dies_before_change, watched
from tests.helpers.faulty_proxy import Fault, faulty_proxy
from tests.helpers.model_package import KEY, new_mlflow, night, write_package
from tests.helpers.promotion import ahead, make_champion, new_alias_manager
from tests.helpers.s3_server import S3Server

NAME = KEY.registered_model
LEDGER = f"ledger/{NAME}"


@dataclass(frozen=True)
class World:
    """A registry with three versions, and a ledger."""

    root: Path
    ledger: str = ""
    endpoint_url: str = ""

    @property
    def mlflow(self) -> MlflowSettings:
        database = self.root / "mlflow" / "mlflow.db"
        return MlflowSettings(tracking_uri=f"sqlite:///{database}", artifact_root=str(self.root / "mlflow/artifacts"))

    def manager(self, clock: Clock = utc_now) -> AliasManager:
        return new_alias_manager(
            self.root, self.mlflow, ledger=self.ledger, endpoint_url=self.endpoint_url, clock=clock
        )

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.mlflow.tracking_uri, registry_uri=self.mlflow.tracking_uri)

    @property
    def aliases(self) -> dict[str, int]:
        return {alias: int(version) for alias, version in self.client.get_registered_model(NAME).aliases.items()}

    @property
    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.manager().snapshot()[0].entries]

    def copy(self, root: Path) -> "World":
        shutil.copytree(self.root, root)
        return World(root)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Versions 1 to 3 of one package, registered and nothing more."""
    world = World(tmp_path_factory.mktemp("template"))
    mlflow = new_mlflow(world.root / "mlflow")
    run_id = open_run(mlflow, night(world.root))
    world.manager().registry.register(KEY, write_package(world.root / "package"), run_id=run_id, tags={})
    first = world.client.get_model_version(NAME, "1")
    for number in (2, 3):
        tags = dict(first.tags) | {"stlm.candidate_key": f"{number:064x}"}
        world.client.create_model_version(NAME, str(first.source), run_id=run_id, tags=tags)
    return world


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    return template.copy(tmp_path / "world")


def _end_state(world: World) -> dict[str, Any]:
    """What must not depend on where a process died."""
    chain, posted = world.manager().snapshot()
    lease = world.manager().lease.read()
    assert replay_ledger(chain.entries).open_intent is None
    assert posted.tags["stlm.ledger_head"] == chain.head
    assert lease is None or lease.holder == ""
    commits = [entry.body for entry in chain.entries if entry.kind == "commit"]
    versions = world.client.search_model_versions(f"name = '{NAME}'")
    return {
        "aliases": dict(posted.aliases),
        "last champion": posted.tags.get("stlm.last_champion"),
        "commits": [{name: value for name, value in body.items() if name != "intent"} for body in commits],
        "nights": {version.version: version.tags.get("stlm.promoted_at_partition") for version in versions},
    }


def test_a_first_promotion_is_announced_and_committed_with_its_record(world: World) -> None:
    make_champion(world.manager(), 1, candidate_key="c" * 64)

    chain, posted = world.manager().snapshot()
    assert [entry.kind for entry in chain.entries] == ["intent", "commit"]
    intent, commit = chain.entries
    assert commit.body == intent.body | {"intent": 1}
    assert commit.body["record"] == {"partition": "2026-11-01", "candidate_key": "c" * 64}
    assert (commit.body["action"], commit.body["from"], commit.body["champion"]) == ("promote", None, 1)
    assert (commit.fence, commit.model) == (1, NAME)
    assert world.aliases == {"champion": 1, "anchor": 1}
    assert posted.tags["stlm.ledger_head"] == chain.head


def test_the_ledger_tells_who_was_champion_at_any_moment(world: World) -> None:
    make_champion(world.manager(), 1)
    make_champion(world.manager(ahead(3600)), 2, partition="2026-11-02")
    entries = world.manager().snapshot()[0].entries

    assert champion_state_at(entries, ahead(-60)()).champion is None
    assert champion_state_at(entries, ahead(60)()).champion == 1
    assert champion_state_at(entries, ahead(3700)()).champion == 2
    assert world.aliases == {"champion": 2, "previous": 1, "anchor": 1}


Change = Callable[[AliasManager], object]


def _promote_2(manager: AliasManager) -> None:
    """As the step does it: nothing where it is done already."""
    with manager.transaction("night") as transaction:
        if transaction.state.champion != 2:
            transaction.move(
                2, action="promote", anchor=2, by="gate", reason="better", record={"partition": "2026-11-02"}
            )


def _roll_back_to_1(manager: AliasManager) -> None:
    with manager.transaction("rollback") as transaction:
        if transaction.state.champion != 1:
            transaction.move(1, action="rollback", anchor=1, by="Ada", reason="false alarms", record={})


def _freeze(manager: AliasManager) -> None:
    with manager.transaction("freeze") as transaction:
        if transaction.state.frozen is None:
            transaction.note("freeze", by="Ada", reason="new camera")


CHANGES: dict[str, tuple[tuple[int, ...], Change]] = {
    "first promotion": ((), _promote_2),
    "promotion": ((1,), _promote_2),
    "roll-back": ((1, 2), _roll_back_to_1),
    "freeze": ((1,), _freeze),
}


_SLOW = pytest.mark.slow


@pytest.mark.chaos(
    "kill -9 of promotion, roll-back and freeze at every change, on a folder and on S3",
    outcome="one move, one commit, the same aliases",
)
@pytest.mark.parametrize(
    ("what", "store", "stride"),
    [
        ("promotion", "folder", 3),  # every third boundary; all of them, and the others, where there is time
        *(pytest.param(what, store, 1, marks=_SLOW) for what in CHANGES for store in ("folder", "s3://")),
    ],
)
def test_killed_at_any_boundary_and_tried_again_it_ends_as_if_undisturbed(
    template: World, tmp_path: Path, request: pytest.FixtureRequest, what: str, store: str, stride: int
) -> None:
    champions, change = CHANGES[what]
    base = template.copy(tmp_path / "base")
    if champions:
        # In a process of its own: a connection to SQLite must not be there when the next process is forked off.
        assert not dies_before_change(10_000, lambda: [make_champion(base.manager(), version) for version in champions])

    def new_world(name: str) -> World:
        world = base.copy(tmp_path / name)
        if store == "folder":
            return world
        server: S3Server = request.getfixturevalue("s3")
        world = replace(world, ledger=request.getfixturevalue("new_store")(), endpoint_url=server.endpoint_url)
        for path in sorted((world.root / LEDGER).glob("*.json")):
            open_storage(world.ledger, endpoint_url=server.endpoint_url).put(f"{NAME}/{path.name}", path)
        return world

    undisturbed = new_world("undisturbed")
    change(undisturbed.manager())
    expected = _end_state(undisturbed)
    champion = expected["aliases"]["champion"]

    def die_and_try_again(world: World, number: int) -> bool:
        died = dies_before_change(number, lambda: change(world.manager()))
        had_moved = world.aliases.get("champion") == champion
        moves: list[str] = []
        with watched(after=lambda name, args: moves.append(args[1]) if name == "set_registered_model_alias" else None):
            change(world.manager(ahead(3600)))
        assert _end_state(world) == expected, f"died before change {number}"
        assert moves.count("champion") == (0 if had_moved else 1)
        return died

    boundaries = itertools.takewhile(lambda n: die_and_try_again(new_world(str(n)), n), itertools.count(1, stride))
    # Lease, intent, aliases, commit, tags, lease.
    least = {"first promotion": 9, "promotion": 10, "roll-back": 9, "freeze": 5}[what]
    assert sum(1 for _ in boundaries) >= least / stride


@pytest.mark.slow
@pytest.mark.chaos(
    "S3 breaks eight requests in a row of a promotion", outcome="one move, one commit; the chain is whole"
)
@pytest.mark.parametrize("fault", ["500", "503", "reset", "half a put", "half an answer"])
def test_a_promotion_whose_ledger_breaks_is_made_once(
    template: World, tmp_path: Path, s3: S3Server, new_store: Callable[[], str], fault: Fault
) -> None:
    with faulty_proxy(s3.endpoint_url) as proxy:
        world = replace(template.copy(tmp_path / "world"), ledger=new_store(), endpoint_url=proxy.url)
        make_champion(world.manager(), 1)
        proxy.breaks(fault, times=8)
        for attempt in range(1, 10):  # as a task's retries, each when the lease of the one before has run out
            with suppress(TransientError):
                _promote_2(world.manager(ahead(3600 * attempt)))
                break
        assert proxy.broken == 8
        proxy.heals()

        assert world.aliases == {"champion": 2, "previous": 1, "anchor": 2}
        assert [e.body["champion"] for e in world.manager().snapshot()[0].entries if e.kind == "commit"] == [1, 2]
        chain, posted = world.manager().snapshot()
        assert posted.tags["stlm.ledger_head"] == chain.head


@pytest.mark.chaos("promotion dies between ledger and alias", outcome="undone before the alias, finished after it")
def test_what_died_before_the_alias_is_undone_and_what_died_after_it_is_finished(
    template: World, tmp_path: Path
) -> None:
    def died_at(change: str, alias: str) -> World:
        world = template.copy(tmp_path / change)
        assert not dies_before_change(10_000, lambda: make_champion(world.manager(), 1))

        def die(name: str, args: tuple[Any, ...]) -> None:
            if name == "set_registered_model_alias" and args[1] == alias:
                raise SystemExit

        def act() -> None:
            hooks = {change: die}
            with watched(**hooks), pytest.raises(SystemExit):  # type: ignore[arg-type]
                make_champion(world.manager(), 2)

        act()
        return world

    undone = died_at("before", "champion")
    with undone.manager(ahead(3600)).transaction("next") as transaction:
        assert transaction.repairs == [
            "entry 3: undone, its writer ended before it moved the alias",
            "alias 'previous' stood at version 1, by the ledger it is no version: moved",
        ]
    assert undone.aliases == {"champion": 1, "anchor": 1}
    assert undone.kinds == ["intent", "commit", "intent", "abort"]

    finished = died_at("after", "champion")
    with finished.manager(ahead(3600)).transaction("next") as transaction:
        assert transaction.repairs == ["entry 3: finished, version 2 had the alias already"]
    assert finished.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert finished.kinds == ["intent", "commit", "intent", "commit"]


def test_an_alias_moved_by_hand_is_put_back(world: World) -> None:
    make_champion(world.manager(), 1)
    world.client.set_registered_model_alias(NAME, "champion", "3")
    with world.manager().transaction("next") as transaction:
        assert transaction.repairs == ["alias 'champion' stood at version 3, by the ledger it is version 1: moved"]
    assert world.aliases["champion"] == 1


def test_a_champion_from_before_there_was_a_ledger_is_written_down(world: World) -> None:
    world.client.set_registered_model_alias(NAME, "champion", "2")
    world.client.set_registered_model_alias(NAME, "previous", "1")
    with world.manager().transaction("next") as transaction:
        state = transaction.state
    assert (state.champion, state.previous, state.anchor) == (2, 1, 2)
    assert state.past_champions == {1, 2}
    assert world.aliases == {"champion": 2, "previous": 1, "anchor": 2}


def test_a_head_that_is_behind_is_brought_up_and_one_that_is_ahead_stops_everything(world: World) -> None:
    make_champion(world.manager(), 1)
    chain = world.manager().snapshot()[0]
    world.client.set_registered_model_tag(NAME, "stlm.ledger_head", f"1:{chain.digests[0]}")
    with world.manager().transaction("next"):
        pass
    assert world.client.get_registered_model(NAME).tags["stlm.ledger_head"] == chain.head

    (world.root / LEDGER / "00000002.json").unlink()
    before = _everything(world)
    with pytest.raises(LedgerBrokenError, match="ends with entry 1, but the registry knows of entry 2"):
        make_champion(world.manager(), 2)
    assert _everything(world) == before


def _everything(world: World) -> tuple[dict[str, bytes], dict[str, int]]:
    folder = world.root / LEDGER
    return {path.name: path.read_bytes() for path in folder.iterdir()}, world.aliases


def _once(wanted: str, position: int, value: str, act: Callable[[], object]) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that acts at the first change ``wanted`` whose argument at ``position`` is ``value``."""
    waiting = True

    def hook(name: str, args: tuple[Any, ...]) -> None:
        nonlocal waiting
        if waiting and name == wanted and str(args[position]).endswith(value):
            waiting = False
            act()

    return hook


@pytest.mark.chaos("a promoter sleeps through its lease before the alias", outcome="refused; changes nothing")
def test_a_holder_whose_lease_ran_out_before_the_alias_changes_nothing(world: World) -> None:
    make_champion(world.manager(), 1)

    # Version 2's promoter falls asleep after its intent, entry 3; version 3 is promoted meanwhile.
    hook = _once("put_if_absent", 0, "00000003.json", lambda: make_champion(world.manager(ahead(60)), 3))
    moves: list[str] = []
    with (
        watched(after=hook),
        watched(after=lambda name, args: moves.append(args[2]) if name == "set_registered_model_alias" else None),
        pytest.raises(StaleLeaseError, match="fence 2 was lost, it is now with nobody with fence 3"),
    ):
        make_champion(world.manager(), 2)

    assert world.aliases == {"champion": 3, "previous": 1, "anchor": 1}
    assert world.kinds == ["intent", "commit", "intent", "abort", "intent", "commit"]
    assert "2" not in moves


@pytest.mark.chaos("a promoter sleeps through its lease at the alias", outcome="its alias is put back")
def test_a_late_alias_of_a_holder_whose_lease_ran_out_is_put_back(world: World) -> None:
    make_champion(world.manager(), 1)

    # Version 2's promoter falls asleep between its last look at the lease and the alias.
    hook = _once("set_registered_model_alias", 1, "champion", lambda: make_champion(world.manager(ahead(60)), 3))
    with watched(before=hook), pytest.raises(StaleLeaseError):
        make_champion(world.manager(), 2)

    assert world.aliases == {"champion": 3, "previous": 1, "anchor": 1}
    assert [e.body["champion"] for e in world.manager().snapshot()[0].entries if e.kind == "commit"] == [1, 3]


@pytest.mark.chaos("a late promoter meets another's commit half way", outcome="the alias is the ledger's")
def test_a_late_writer_that_meets_a_commit_half_way_does_not_leave_its_alias_behind(world: World) -> None:
    """Version 3's promoter has moved the alias and is about to commit, entry 6, when version 2's wakes up, sets its
    alias, finds its lease lost and puts back what the ledger says by then: version 1."""
    make_champion(world.manager(), 1)
    asleep, awake = threading.Event(), threading.Event()
    late: list[BaseException] = []

    def sleeper() -> None:
        try:
            make_champion(world.manager(), 2)
        except StaleLeaseError as error:
            late.append(error)

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "set_registered_model_alias" and args[1:] == ("champion", "2"):
            asleep.set()
            assert awake.wait(30)
        if name == "put_if_absent" and str(args[0]).endswith("00000006.json"):
            awake.set()
            thread.join(30)

    thread = threading.Thread(target=sleeper)
    with watched(before=hook):
        thread.start()
        assert asleep.wait(30)
        make_champion(world.manager(ahead(60)), 3)

    assert [type(error) for error in late] == [StaleLeaseError]
    assert world.aliases == {"champion": 3, "previous": 1, "anchor": 1}
    assert world.kinds == ["intent", "commit", "intent", "abort", "intent", "commit"]


def test_a_lease_that_ran_out_unnoticed_is_not_used_again(world: World) -> None:
    make_champion(world.manager(), 1)
    seconds = [0.0]

    def clock() -> dt.datetime:
        return ahead(seconds[0])()

    def slow(name: str, args: tuple[Any, ...]) -> None:
        if name == "put_if_absent" and str(args[0]).endswith("00000003.json"):
            seconds[0] = 60.0

    with watched(after=slow), pytest.raises(StaleLeaseError, match="ran out at"):
        make_champion(world.manager(clock), 2)
    assert world.aliases["champion"] == 1


@pytest.mark.chaos("four processes promote at once", outcome="one wins, the others are told")
def test_of_processes_that_promote_at_once_exactly_one_wins(world: World) -> None:
    assert not dies_before_change(10_000, lambda: make_champion(world.manager(), 1))

    def work(number: int) -> tuple[str, int | None]:
        night = f"2026-12-0{number + 1}"
        done = promote_version(
            world.manager(), 2 + number % 2, judged_against=1, becomes_anchor=False, by="gate", reason="better",
            record={"partition": night},
        )  # fmt: skip
        return done.outcome, done.version

    told = at_once(4, work)
    (winner,) = [version for outcome, version in told if outcome == "PROMOTED"]
    loser = 5 - winner
    # Two processes promote each of two versions: the winner's twin finds it done, the others' verdict is stale.
    assert sorted(told) == sorted(
        [("PROMOTED", winner), ("ALREADY_PROMOTED", winner), ("STALE_DECISION", loser), ("STALE_DECISION", loser)]
    )
    assert world.aliases == {"champion": winner, "previous": 1, "anchor": 1}
    assert world.kinds == ["intent", "commit"] * 2


def test_who_waits_for_a_desk_is_told_who_is_there(world: World) -> None:
    with (
        world.manager().transaction("night 2026-11-02"),
        pytest.raises(LeaseHeldError, match="held by night 2026-11-02@"),
        world.manager().transaction("rollback", wait_s=0.1),
    ):
        pass


def test_versions_that_carry_or_carried_an_alias_are_not_deleted(world: World) -> None:
    make_champion(world.manager(), 1)
    make_champion(world.manager(), 2)
    with world.manager().transaction("rollback") as transaction:
        transaction.move(1, action="rollback", anchor=1, by="Ada", reason="false alarms", record={})
    before = world.kinds

    for version, why in ((1, "carries 'anchor', 'champion'"), (2, "was one of champion, previous, anchor, challenger")):
        with pytest.raises(InputError, match=f"version {version} of {NAME} is kept: it {why}"):
            delete_version(world.manager(), version, by="Ada")
    delete_version(world.manager(), 3, by="Ada")
    with pytest.raises(InputError, match="has no version 3"):
        delete_version(world.manager(), 3, by="Ada")

    assert {int(version.version) for version in world.client.search_model_versions(f"name = '{NAME}'")} == {1, 2}
    assert world.kinds == before
