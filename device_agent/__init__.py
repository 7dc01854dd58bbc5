"""Runs on each dispenser: decides, drives the hardware, keeps facts until they are acknowledged."""
