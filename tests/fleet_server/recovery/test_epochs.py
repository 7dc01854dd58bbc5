"""A restore begins a new epoch: nothing that was on its way is sent again, and no number is given twice."""

from pathlib import Path

from fleet_server.clock import FixedClock, system_now
from fleet_server.database import Database
from fleet_server.devices import outgoing
from fleet_server.devices.machines import Announcement
from fleet_server.devices.store import announce, server_epoch
from fleet_server.ingest.worker import Message, Worker
from fleet_server.ledger.telling import tell_books, tell_desired
from fleet_server.planning import service as planning
from protocol.codec import decode_ack
from protocol.topics import Channel
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import backed_up, put_back, table
from tests.fleet_server.test_command_line import run


def epoch_of(database: Database) -> int:
    with database.begin() as connection:
        return server_epoch(connection)


def versions(database: Database, channel: Channel) -> list[int]:
    query = f"SELECT key FROM outgoing WHERE dispenser_id = 'HD-001' AND channel = '{channel}' ORDER BY id"
    return [int(key) for (key,) in table(database, query)]


def test_two_restores_of_one_backup_begin_two_epochs_and_the_later_is_the_higher(
    database: Database, tmp_path: Path
) -> None:
    assert epoch_of(database) == 1
    path = backed_up(database, tmp_path)
    first = put_back(database, path).epoch
    assert epoch_of(database) == first > 1
    # What the first restore began is forgotten with the database, so that only the clock can tell.
    with database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM server_state")
    second = put_back(database, path).epoch
    assert second > first
    assert put_back(database, path, epoch_after=second + 500).epoch == second + 501
    assert put_back(database, path).epoch == second + 502  # above what it replaces, whatever the clock says


def test_a_worker_whose_database_was_restored_while_it_was_away_speaks_in_the_new_epoch(
    database: Database, tmp_path: Path
) -> None:
    """In the old one no machine would send again, and none would be heard."""
    worker, machine = Worker(database, FixedClock(NOW)), Machine().vend()

    def answered() -> int:
        (answer,) = worker.commit([Message("fleet/v1/HD-001/facts", machine.batch())]).answers
        return decode_ack(answer.payload).server_epoch

    assert answered() == 1
    restored = put_back(database, backed_up(database, tmp_path))
    assert answered() == restored.epoch


def test_an_unanswered_order_is_unknown_and_never_sent_again(database: Database, tmp_path: Path) -> None:
    machine = Machine().vend()
    send(database, machine)
    status = Announcement("HD-001", machine.stream_id, 3, online=True, received_at=NOW)
    with database.begin() as connection:
        announce(connection, [status])
        order_id = outgoing.order(connection, "HD-001", "test_vend", slot=1, lives_s=86_400, now=NOW)
    put_back(database, backed_up(database, tmp_path))
    with database.begin() as connection:
        announce(connection, [status])
        assert outgoing.order_state(connection, order_id).answer == "unknown"
    sent = Worker(database, FixedClock(NOW)).outbound(again=True)
    assert {message.topic.rsplit("/", 1)[1] for message in sent} == {"desired"}


def test_versions_go_on_above_what_machines_may_have_applied_since_the_backup(
    database: Database, tmp_path: Path
) -> None:
    def tell_all() -> None:
        with database.begin() as connection:
            tell_desired(connection, None, NOW, again=True)
            tell_books(connection, ["HD-001"], NOW)

    send(database, Machine().vend())
    path = backed_up(database, tmp_path)
    highest = 0
    for _ in range(2):  # the second restore has to pass what the first epoch told
        for _ in range(20):
            tell_all()
        told = versions(database, Channel.DESIRED), versions(database, Channel.BOOKS)
        assert min(told[0][-1], told[1][-1]) > highest
        highest = max(told[0][-1], told[1][-1])
        put_back(database, path)
        # Every machine is told its desired state anew: it may have another one since.
        assert versions(database, Channel.DESIRED)[-1] > highest
    tell_all()
    assert versions(database, Channel.BOOKS)[-1] > highest


def test_plans_of_a_new_epoch_have_names_that_no_lost_plan_had(database: Database, tmp_path: Path) -> None:
    path = backed_up(database, tmp_path)
    with database.begin() as connection:
        lost = planning.make_plan(connection, "HUANGDAO", NOW).id
    put_back(database, path)
    with database.begin() as connection:
        assert planning.make_plan(connection, "HUANGDAO", NOW).id != lost


def test_nobody_is_online_or_signed_in_until_they_say_so(database: Database, tmp_path: Path) -> None:
    machine = Machine().vend()
    send(database, machine)
    with database.begin() as connection:
        announce(connection, [Announcement("HD-001", machine.stream_id, 1, online=True, received_at=NOW)])
    put_back(database, backed_up(database, tmp_path))
    assert table(database, "SELECT * FROM presence UNION SELECT NULL, NULL, 0, NULL, seen_at FROM sessions") == []


def test_a_database_put_back_by_other_means_gets_its_epoch_by_command(database: Database, database_url: str) -> None:
    database.close()
    done = run("new-epoch", url=database_url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert epoch_of(database) > int(system_now().timestamp()) - 3600
    assert str(epoch_of(database)) in done.stdout
