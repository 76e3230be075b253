"""The worker: a parent that brokers and never runs a task, and children that do nothing else.

`worker.Worker` is what users see. `supervisor` is the parent's loop; it claims through `queues`,
paces itself by `window`, keeps `leases`, and hands single tasks to the processes of `pool`. A child
(`child`) runs them in its `lanes` and answers with an outcome. Parent and child meet in `frames`
(what they send) and `slots` (shared memory: what is running).

Code of users beside tasks runs in two places: in a child, plugins are called by `hooks`; in the
parent, callbacks and plugins are called by `callbacks`, on the thread of `side`. Both tell of a
task as `aftermath` says that it is after its run.
"""
