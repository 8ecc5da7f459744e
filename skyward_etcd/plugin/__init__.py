"""Inside the real Skyward: its ``sky.dict``, ``sky.lock`` … on an etcd cluster that runs on its pool's own nodes."""
