"""Losses: pure functions that masks select for, and one composer."""
