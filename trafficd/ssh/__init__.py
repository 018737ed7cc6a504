"""Other hosts, over SSH: connections that are shared, programs that outlive them, sockets brought near.

asyncssh is imported where the first connection is made: most daemons have no other host.
"""
