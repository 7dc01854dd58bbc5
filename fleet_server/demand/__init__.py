"""From vends to rates: how fast each machine gives out each product."""
