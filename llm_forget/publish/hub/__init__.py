"""Access to the Hub: push a publication, pull and verify one, purge withdrawn versions.

`bundle.publication` selects the files to publish; only `push`, `pull` and `purge` talk to the Hub.
"""
