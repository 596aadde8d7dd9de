"""The parameter server as state machines: shards serve, clients read and write, workers loop. No I/O in this folder.

worker 0 --PULL 7--> shard   "may clock 7 be read?"         store.py        values, versions, how a delta changes them
worker 0 <--ROWS---- shard   values, or: read in place      shard.py        the server role: one comparison decides who waits
worker 0 --PUSH 7--> shard   a delta that ends clock 7      client.py       questions asked, own writes not yet seen, copies held
                                                            routing.py      which shard is asked for which rows
worker 0 --NEXT--> coordinator   "what do I compute?"       cached_rows.py  a client that keeps a bounded number of rows
worker 0 <-GRANT-- coordinator   clock, block, weight       managed.py      a client that sends within a budget of bytes a second
                                                            coded.py        client, shard and store that send codes of what has changed
                                                            codes.py        what a run by codes has and saves besides
                                                            coded_there.py  such a store whose values lie on a device
                                                            crossing.py     codes between a device and messages
                                                            on_device.py    a store's updates on a device
                                                            worker.py       the worker role: pull, compute, push, clock
                                                            task.py         its program: what is read, computed, pushed
                                                            coordinator.py  the role that grants clocks, where a run needs it
                                                            waits.py        for whom a worker stood idle
                                                            waves.py        a stage's server, which replicas of a pipeline push to
                                                            order.py        the same, where pushes count in the order in which they come
"""
