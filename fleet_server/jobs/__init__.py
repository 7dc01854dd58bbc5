"""What the server does by itself, by the fleet's clock."""
