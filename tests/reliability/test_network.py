"""N1 to N9: the link between machines and server is cut, thinned, slowed, reset and swallowed."""

import pytest

from tests.reliability.conftest import Scale
from tests.reliability.fleet import Fleet
from tests.reliability.network import Namespace

pytestmark = [pytest.mark.slow, pytest.mark.root]


def test_n1_a_cut_link_is_noticed_while_vending_goes_on_and_the_backlog_drains(
    namespace: Namespace, fleet: Fleet, scale: Scale
) -> None:
    throw = scale.throw()
    with namespace.dropping():
        given = fleet.work(throw, scale.facts)
        # Two keep-alives of 3 s; then a machine has given its connection up and tries to make another.
        port = fleet.address[1]
        fleet.until(lambda: not any(m.is_connected(port) for m in fleet.machines), "each machine notices", 20)
        given += fleet.work(throw, scale.facts)
        fleet.until(fleet.idle, "visitors are served without a link", 15)
        assert given > 0, scale.note
    fleet.settle(scale.note)
