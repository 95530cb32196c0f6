"""Measured claims: each module is a script anyone can run again; results/ holds what it said."""
