"""The worker: a parent that brokers and never runs a task, and children that do nothing else.

`worker.Worker` is what users see. `supervisor` is the parent's loop; it claims through `queues`,
paces itself by `window`, keeps `leases`, and hands single tasks to the processes of `pool`. A child
(`child`) runs them in its `lanes` and answers with an outcome. Parent and child meet in `frames`
(what they send) and `slots` (shared memory: what is running).
"""
