"""Work orders as a released plan makes them."""

from datetime import date

from fleet_server.workorders import service as workorders
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.web.site import Site


def released_order(site: Site, depot: str = "HUANGDAO", order_id: str = "WO-1") -> str:
    """A work order of one stop at HD-001: 6 packs of L1 for slot 1."""
    pick = workorders.PlannedPick(1, "CONDOM-M", "L1", 6)
    stop = workorders.PlannedStop("HD-001", [{"code": "empty", "product": "CONDOM-M"}], [pick])
    with site.database.begin() as connection:
        workorders.create(connection, order_id, f"plan-{order_id}", depot, date(2026, 9, 22), [stop], NOW)
    return order_id
