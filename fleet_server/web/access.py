"""Who may use which route: one table, and what is not in it nobody may."""

from typing import Final

from fleet_server.auth.service import Role

R, D, S, V, A = Role.RESTOCKER, Role.DISPATCHER, Role.SUPERVISOR, Role.VIEWER, Role.ADMINISTRATOR
STAFF: Final = frozenset({R, D, S, A})
DESK: Final = frozenset({D, S, A})
SUPPLY: Final = frozenset({R, D, A})
EVERYBODY: Final = frozenset({R, D, S, V, A})
PUBLIC: Final[frozenset[Role]] = frozenset()

ACCESS: Final[dict[tuple[str, str], frozenset[Role]]] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/metrics"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    # API
    ("POST", "/api/v1/sign-in"): PUBLIC,
    ("POST", "/api/v1/sign-out"): EVERYBODY,
    ("GET", "/api/v1/dispensers"): EVERYBODY,
    ("GET", "/api/v1/dispensers/{dispenser_id}"): STAFF,
    ("GET", "/api/v1/dispensers/{dispenser_id}/facts"): STAFF,
    ("GET", "/api/v1/dispensers/{dispenser_id}/streams"): STAFF,
    ("GET", "/api/v1/slots"): STAFF,
    ("GET", "/api/v1/stock"): STAFF,
    ("GET", "/api/v1/ledger/movements"): DESK,
    ("GET", "/api/v1/ledger/audit"): frozenset({A}),
    ("GET", "/api/v1/depot"): STAFF,
    ("POST", "/api/v1/depot/receipts"): frozenset({D, A}),
    ("GET", "/api/v1/lots"): STAFF,
    ("POST", "/api/v1/lots"): frozenset({D, A}),
    ("POST", "/api/v1/lots/block"): DESK,
    ("GET", "/api/v1/faults"): DESK,
    ("GET", "/api/v1/plans"): DESK,
    ("POST", "/api/v1/plans"): frozenset({D, A}),
    ("GET", "/api/v1/plans/{plan_id}"): DESK,
    ("POST", "/api/v1/plans/{plan_id}/release"): frozenset({D, A}),
    ("GET", "/api/v1/work-orders"): STAFF,
    ("GET", "/api/v1/work-orders/{work_order_id}"): STAFF,
    ("POST", "/api/v1/work-orders/{work_order_id}/pick"): SUPPLY,
    ("POST", "/api/v1/work-orders/{work_order_id}/return"): SUPPLY,
    ("POST", "/api/v1/visits/{visit_id}/arrive"): SUPPLY,
    ("POST", "/api/v1/visits/{visit_id}/unlock"): SUPPLY,
    ("POST", "/api/v1/visits/{visit_id}/operations"): SUPPLY,
    ("POST", "/api/v1/visits/{visit_id}/close"): SUPPLY,
    ("POST", "/api/v1/visits/{visit_id}/skip"): SUPPLY,
    ("POST", "/api/v1/recovery/operations"): SUPPLY,
    ("GET", "/api/v1/clock"): EVERYBODY,
    ("POST", "/api/v1/clock/advance"): frozenset({A}),
    ("POST", "/api/v1/clock/live"): frozenset({A}),
    # pages
    ("GET", "/sign-in"): PUBLIC,
    ("POST", "/sign-in"): PUBLIC,
    ("POST", "/sign-out"): EVERYBODY,
    ("GET", "/language/{language}"): PUBLIC,
    ("GET", "/"): EVERYBODY,
    ("GET", "/dispensers/{dispenser_id}"): STAFF,
    ("GET", "/faults"): DESK,
    ("GET", "/plan"): DESK,
    ("POST", "/plan"): frozenset({D, A}),
    ("POST", "/plan/{plan_id}/release"): frozenset({D, A}),
    ("GET", "/work-orders"): STAFF,
    ("GET", "/work-orders/{work_order_id}"): STAFF,
    ("POST", "/work-orders/{work_order_id}/pick"): SUPPLY,
    ("POST", "/work-orders/{work_order_id}/return"): SUPPLY,
    ("GET", "/visits/{visit_id}"): STAFF,
    ("GET", "/visits/{visit_id}/door"): STAFF,
    ("POST", "/visits/{visit_id}/{step}"): SUPPLY,
    ("GET", "/depot"): STAFF,
    ("GET", "/health"): frozenset({S, A}),
}
