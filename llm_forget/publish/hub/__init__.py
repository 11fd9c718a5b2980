"""To the Hub and back: push what may be seen, pull what is exactly that, purge what must not be there any more.

`publication` decides which files leave the machine, `push`, `pull` and `purge` talk to the Hub, and only they.
"""
