"""The hardware: what a board driver must do, and the drivers."""
