"""Deletion requests, from intake to closing."""
