"""What is wrong, of a machine or found by the server: one open row per cause."""
