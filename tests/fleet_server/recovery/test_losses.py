"""What could not come back is listed, as far as anything still tells of it."""

from pathlib import Path

from fleet_server.database import Database
from fleet_server.devices import outgoing
from fleet_server.ledger import depot
from fleet_server.recovery.losses import Loss, losses
from protocol.messages import ConfigApplied, OrderOutcome, OrderResult
from tests.fleet_server.fixtures import NOW, enter, operation, send, send_bytes
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import backed_up, put_back


def listed(database: Database) -> list[Loss]:
    with database.begin() as connection:
        return losses(connection)


def words(found: list[Loss], kind: str) -> str:
    return " | ".join(loss.words for loss in found if loss.kind == kind)


def test_a_server_that_lost_nothing_lists_nothing(database: Database, tmp_path: Path) -> None:
    machine = Machine().vend().door("111111")
    send(database, machine)
    enter(database, operation("count", "111111", 0, counted=3))
    assert listed(database) == []
    put_back(database, backed_up(database, tmp_path))
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO presence SELECT dispenser_id, stream_id, 9, true, %b FROM streams", (NOW.replace(year=2030),)
        )
        # The visit of these fixtures never had a work order.
        connection.exec_driver_sql(
            "SET session_replication_role = replica; DELETE FROM operations WHERE visit_id = 'V1'"
        )
    assert listed(database) == []


def test_everything_that_still_leaves_a_trace_is_named(database: Database, tmp_path: Path) -> None:
    machine = Machine().vend().vend()
    send(database, machine)
    silent = Machine("HD-002").vend()
    send(database, silent)
    with database.begin() as connection:
        known = outgoing.order(connection, "HD-001", "unlock", lives_s=600, now=NOW)
        answered = outgoing.order(connection, "HD-001", "unlock", lives_s=600, now=NOW)
    put_back(database, backed_up(database, tmp_path))
    # Since the backup: a visit whose phone is broken, an order, a new planogram, a pick and a receipt that nobody kept.
    lost, when = "ab" * 16, machine.when
    machine.door("222222")
    for order_id in (lost, answered):
        machine.tell(OrderResult(**when(), order_id=order_id, outcome=OrderOutcome.DONE, detail=""))
    machine.tell(ConfigApplied(**when(), what="desired", version=77, applied=True)).door("333333")
    send(database, machine)
    enter(database, operation("refill", "333333", 0, lot="L1", packs=4), operation("count", "444444", 0, counted=4))
    with database.begin() as connection:
        line = [depot.StockLine("CONDOM-M", "L2", 600)]
        depot.take_back(connection, "p" * 8, "HUANGDAO", "pick", "van/T9", line, "user:li", NOW, NOW)
    found = listed(database)
    assert "session 222222" in words(found, "visit")
    assert "333333" not in words(found, "visit")
    assert lost in words(found, "order")
    assert known in words(found, "order")
    assert answered not in words(found, "order")
    assert "desired state 77" in words(found, "desired")
    assert "444444" in words(found, "waiting")
    assert "visit V1" in words(found, "work_order")
    places = {loss.place for loss in found if loss.kind == "stock"}
    assert places == {"van/T1", "depot/HUANGDAO"}
    assert [loss.place for loss in found if loss.kind == "silent"] == ["HD-002"]


def test_facts_and_streams_that_nobody_has_any_more_are_named(database: Database, tmp_path: Path) -> None:
    first, second = Machine().vend().vend(), Machine("HD-002").vend()
    for machine in (first, second):
        send(database, machine)
    put_back(database, backed_up(database, tmp_path))
    send(database, Machine().vend())  # a new card
    for _ in range(5):
        second.vend()
    send_bytes(database, "HD-002", second.batch(5, oldest=True))
    found = listed(database)
    assert "facts 2 to 4 of stream 1" in words(found, "facts")
    assert "stream 1 stands at fact 2, and a new stream began" in words(found, "stream")
