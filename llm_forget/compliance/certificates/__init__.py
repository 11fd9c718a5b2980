"""Signed certificates of deletion."""
